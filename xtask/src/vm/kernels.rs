//! Stock Debian kernels: which there are, and how one is fetched and unpacked below `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tholepin_harness::tools;

use crate::setup::suites;

/// A kernel of the matrix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    suite: &'static str,
}

/// The supported ones, oldest first.
pub(super) const SUPPORTED: &[&Kernel] = &[&ALL[1], &ALL[2], &ALL[3]];

static ALL: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye",
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
    },
    Kernel {
        name: "latest",
        suite: "sid",
    },
];

/// What the tests need where it is not built in. Their dependencies are found by themselves.
pub(super) const MODULES: &[&str] = &[
    "act_mirred",
    "cls_bpf",
    "ifb",
    "ip6_tunnel",
    "netkit",
    "sch_ingress",
    "sch_tbf",
    "sctp",
    "veth",
    "vxlan",
];

/// The image and the modules of an unpacked kernel.
#[derive(Debug)]
pub(super) struct Files {
    /// `6.1.0-50-cloud-amd64`.
    pub(super) version: String,
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// The kernel of that name.
pub(super) fn named(name: &str) -> Result<&'static Kernel> {
    let Some(kernel) = ALL.iter().find(|kernel| kernel.name == name) else {
        let names: Vec<&str> = ALL.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel `{name}`: there are {}", names.join(", "));
    };
    Ok(kernel)
}

/// Fetches the suite's newest cloud kernel, unless it is there already.
pub(super) fn fetch(kernel: &Kernel) -> Result<Files> {
    let folder = format!("kernel-{}", kernel.name);
    let directory = tools::tools_dir().join(&folder);
    if let Ok(files) = unpacked(&directory) {
        return Ok(files);
    }
    println!("==> fetching the cloud kernel of Debian {}", kernel.suite);
    // The metapackage depends on the image, and newer images on their binary and modules.
    suites::fetch_closure(kernel.suite, "linux-image-cloud-amd64", is_part, &folder)?;
    unpacked(&directory)
}

fn is_part(package: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"]
        .iter()
        .any(|prefix| package.starts_with(prefix))
        && package.ends_with("-cloud-amd64")
}

/// Modules are in `lib` or `usr/lib`, the image in `boot`, or since 7.x beside its modules.
fn unpacked(directory: &Path) -> Result<Files> {
    for folder in ["lib/modules", "usr/lib/modules"] {
        let Ok(versions) = fs::read_dir(directory.join(folder)) else {
            continue;
        };
        for modules in versions.flatten().map(|entry| entry.path()) {
            let Some(version) = modules.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let boot = directory.join("boot").join(format!("vmlinuz-{version}"));
            let image = [boot, modules.join("vmlinuz")]
                .into_iter()
                .find(|image| image.is_file());
            if let Some(image) = image {
                return Ok(Files {
                    version: version.to_owned(),
                    image,
                    modules,
                });
            }
        }
    }
    bail!("no kernel with modules in {}", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_is_refused_with_the_names_of_those_there_are() {
        let error = named("4.19").unwrap_err().to_string();
        assert_eq!(error, "no kernel `4.19`: there are 5.10, 6.1, 6.12, latest");
    }

    #[test]
    fn an_image_is_found_in_boot_and_beside_its_modules() {
        for (image, modules) in [
            ("boot/vmlinuz-6.1.0", "lib/modules/6.1.0"),
            ("usr/lib/modules/7.2.0/vmlinuz", "usr/lib/modules/7.2.0"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let at = |path: &str| directory.path().join(path);
            assert!(unpacked(directory.path()).is_err());
            fs::create_dir_all(at(modules).join("kernel")).unwrap();
            fs::create_dir_all(at("boot")).unwrap();
            fs::write(at(image), "").unwrap();
            let files = unpacked(directory.path()).unwrap();
            assert_eq!((files.image, files.modules), (at(image), at(modules)));
        }
    }

    #[test]
    fn only_the_parts_of_the_cloud_kernel_are_fetched() {
        assert!(is_part("linux-modules-7.2.13+deb14-cloud-amd64"));
        assert!(!is_part("linux-base-7.2.13+deb14-cloud-amd64"));
        assert!(!is_part("initramfs-tools"));
    }
}
