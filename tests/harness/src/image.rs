//! The project's own images: OCI archives made from static programs, the same bytes for the same
//! programs. No image can be pulled from anywhere in a test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command;
use crate::layout::target_dir;
use crate::tools;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The image with the toolbox (`/toolbox serve`) and busybox.
pub const WEB: &str = "tholepin.test/web:1";
/// The image with busybox only.
pub const BUSYBOX: &str = "tholepin.test/busybox:1";

/// Content with its digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            digest: format!("sha256:{}", hex::encode(Sha256::digest(&bytes))),
            bytes,
        }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image with one layer.
#[derive(Debug, Clone)]
pub struct Image {
    /// `tholepin.test/web:1`
    pub name: String,
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layer.
    pub layer: Blob,
}

/// What goes into an image.
#[derive(Debug, Default)]
pub struct Recipe {
    files: Vec<(String, u32, Vec<u8>)>,
    links: Vec<(String, String)>,
    config: Value,
}

impl Recipe {
    /// An image that runs `entrypoint` with `cmd`.
    #[must_use]
    pub fn new(entrypoint: &[&str], cmd: &[&str]) -> Self {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut config = json!({"Env": [path], "WorkingDir": "/"});
        if !entrypoint.is_empty() {
            config["Entrypoint"] = json!(entrypoint);
        }
        if !cmd.is_empty() {
            config["Cmd"] = json!(cmd);
        }
        Self {
            config,
            ..Self::default()
        }
    }

    /// Sets a field of the image's configuration (`User`, `StopSignal`, …).
    #[must_use]
    pub fn with_config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Adds a file (its path without the leading slash).
    #[must_use]
    pub fn with_file(mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        self.files.push((path.to_owned(), mode, bytes));
        self
    }

    /// Adds busybox with a link for each of its commands, and the few files a shell expects.
    pub fn with_busybox(mut self) -> Result<Self> {
        let program = tools::static_busybox()?;
        self = self.with_file("bin/busybox", 0o755, fs::read(&program)?);
        self = self.with_file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\n".to_vec(),
        );
        self = self.with_file("etc/group", 0o644, b"root:x:0:\n".to_vec());
        let commands = command::run(Command::new(&program).arg("--list"))?;
        for name in commands
            .split_whitespace()
            .filter(|name| *name != "busybox")
        {
            self.links
                .push((format!("bin/{name}"), "busybox".to_owned()));
        }
        Ok(self)
    }

    /// The image, the same for the same recipe.
    pub fn build(self, name: &str) -> Result<Image> {
        let tar = self.layer()?;
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&tar)));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar)?;
        let layer = Blob::new(gzip.finish()?);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = Blob::new(serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tholepin harness"}],
        }))?);
        let manifest = Blob::new(serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }))?);
        Ok(Image {
            name: name.to_owned(),
            manifest,
            config,
            layer,
        })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (dir, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o755),
            ("root", 0o700),
            ("sys", 0o755),
            ("tmp", 0o1777),
            ("var", 0o755),
        ] {
            let mut header = header(tar::EntryType::Directory, mode, 0);
            tar.append_data(&mut header, format!("{dir}/"), std::io::empty())?;
        }
        for (path, mode, bytes) in &self.files {
            let mut header = header(tar::EntryType::Regular, *mode, bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())?;
        }
        for (path, target) in &self.links {
            tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)?;
        }
        Ok(tar.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

impl Image {
    /// The image as an archive in OCI layout, as `ctr images import` reads it.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut entry = self.manifest.descriptor(MANIFEST);
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
            tar.append_data(&mut header, path, bytes)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &serde_json::to_vec(&index)?)?;
        for blob in [&self.manifest, &self.config, &self.layer] {
            add(
                &format!("blobs/{}", blob.digest.replace(':', "/")),
                &blob.bytes,
            )?;
        }
        Ok(tar.into_inner()?)
    }
}

/// The `web` image.
pub fn web(toolbox: &Path) -> Result<Image> {
    let program =
        fs::read(toolbox).with_context(|| format!("cannot read {}", toolbox.display()))?;
    Recipe::new(&["/toolbox"], &["serve"])
        .with_file("toolbox", 0o755, program)
        .with_busybox()?
        .build(WEB)
}

/// The `busybox` image.
pub fn busybox() -> Result<Image> {
    Recipe::new(&[], &["sh"]).with_busybox()?.build(BUSYBOX)
}

/// Archives of the project's images, made again only when the programs in them have changed.
pub fn archives(toolbox: &Path) -> Result<Vec<PathBuf>> {
    let dir = target_dir().join("tholepin-images");
    fs::create_dir_all(&dir)?;
    let stamp = fingerprint(&[toolbox, &tools::static_busybox()?])?;
    let make: [(&str, &dyn Fn() -> Result<Image>); 2] =
        [("web", &|| web(toolbox)), ("busybox", &busybox)];
    make.into_iter()
        .map(|(name, image)| {
            let path = dir.join(format!("{name}-{stamp}.tar"));
            if !path.exists() {
                // Written aside and renamed: tests start clusters at the same time.
                let mut file = tempfile::NamedTempFile::new_in(&dir)?;
                file.write_all(&image()?.archive()?)?;
                file.persist(&path)?;
            }
            Ok(path)
        })
        .collect()
}

/// Changes whenever a file's content can have changed, or this recipe's own code.
fn fingerprint(files: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(include_str!("image.rs"));
    for file in files {
        let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(format!(
            "{} {} {} {}\n",
            file.display(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec()
        ));
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        let recipe = Recipe::new(&["/x"], &[]).with_file("x", 0o755, b"program".to_vec());
        recipe.build("tholepin.test/x:2").unwrap()
    }

    #[test]
    fn the_same_recipe_gives_the_same_image() {
        assert_eq!(sample().manifest.digest, sample().manifest.digest);
    }

    #[test]
    fn the_archive_holds_the_layout_and_every_blob_under_its_digest() {
        let image = sample();
        let bytes = image.archive().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        for blob in [&image.manifest, &image.config, &image.layer] {
            let path = format!("blobs/{}", blob.digest.replace(':', "/"));
            let at = names
                .iter()
                .position(|name| *name == path)
                .expect("the blob is there");
            names.remove(at);
        }
        assert_eq!(names, ["oci-layout", "index.json"]);
    }

    #[test]
    fn the_configuration_names_the_layers_uncompressed_digest() {
        let image = sample();
        let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
        let mut tar = Vec::new();
        let mut gzip = flate2::read::GzDecoder::new(image.layer.bytes.as_slice());
        std::io::Read::read_to_end(&mut gzip, &mut tar).unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&tar)));
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/x"]));
    }
}
