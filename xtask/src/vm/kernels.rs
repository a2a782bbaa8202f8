//! Stock Debian kernels: which there are, and how one is fetched and unpacked below `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
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

fn unpacked(directory: &Path) -> Result<Files> {
    let boot = directory.join("boot");
    let images = fs::read_dir(&boot).with_context(|| format!("no {}", boot.display()))?;
    let (version, image) = images
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.strip_prefix("vmlinuz-")?.to_owned(), entry.path()))
        })
        .with_context(|| format!("no kernel image in {}", boot.display()))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|folder| directory.join(folder).join(&version))
        .into_iter()
        .find(|folder| folder.is_dir())
        .with_context(|| format!("no modules of {version} in {}", directory.display()))?;
    Ok(Files {
        version,
        image,
        modules,
    })
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
    fn only_the_parts_of_the_cloud_kernel_are_fetched() {
        assert!(is_part("linux-modules-7.2.13+deb14-cloud-amd64"));
        assert!(!is_part("linux-base-7.2.13+deb14-cloud-amd64"));
        assert!(!is_part("initramfs-tools"));
    }
}
