//! The list of what is needed, what for, how to see that it is there, and where it comes from.

use std::path::Path;
use std::process::Command;

use tholepin_harness::{command, tools};

use super::toolchain;

/// What a requirement is needed for; each includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Building the programs.
    Build,
    /// Running a cluster on this machine.
    Run,
    /// The whole test matrix and the checks of `ci`.
    Ci,
    /// What measurements compare with; asked for by name only.
    Bench,
}

/// Where setup gets it.
#[derive(Debug)]
pub(super) enum Source {
    /// The machine's own packages.
    Packages(&'static [&'static str]),
    /// A package of another Debian suite, unpacked below `target/tools`.
    Suite {
        suite: &'static str,
        package: &'static str,
        folder: &'static str,
    },
    /// A package of the machine's own suites, unpacked below `target/tools`: installed, its daemon
    /// would start.
    Own {
        package: &'static str,
        folder: &'static str,
    },
    /// A compiler with core's source.
    EbpfCompiler,
    /// `bpf-linker`, built for that compiler.
    BpfLinker,
    /// A program built by `cargo install`.
    Cargo(&'static str),
}

impl Source {
    /// What setup would do, for `--check`.
    pub(super) fn plan(&self) -> String {
        match self {
            Self::Packages(packages) => format!("apt-get install {}", packages.join(" ")),
            Self::Suite {
                suite,
                package,
                folder,
            } => {
                format!("unpack {package} of Debian {suite} below target/tools/{folder}")
            }
            Self::Own { package, folder } => {
                format!("unpack {package} of this system's suite below target/tools/{folder}")
            }
            Self::EbpfCompiler => {
                "apt-get install rustc-web rust-web-src where apt has them with LLVM 22, else \
                 rustup's nightly with rust-src"
                    .to_owned()
            }
            Self::BpfLinker => {
                "cargo install bpf-linker (for Debian's compiler with apt-get install llvm-22-dev)"
                    .to_owned()
            }
            Self::Cargo(name) => format!("cargo install {name}"),
        }
    }
}

/// One thing that is needed.
#[derive(Debug)]
pub(super) struct Requirement {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
    pub(super) scope: Scope,
    /// What was found, for people.
    pub(super) find: fn() -> Option<String>,
    pub(super) source: Source,
    /// How to get it on a system that setup does not install on.
    pub(super) hint: &'static str,
}

pub(super) fn all() -> &'static [Requirement] {
    use Scope::{Bench, Build, Ci, Run};
    static ALL: &[Requirement] = &[
        Requirement {
            name: "C compiler",
            why: "links programs, builds ring",
            scope: Build,
            find: || on_path("cc"),
            source: Source::Packages(&["gcc", "libc6-dev"]),
            hint: "your distribution's gcc or clang, with the C library's headers",
        },
        Requirement {
            name: "protoc",
            why: "builds containerd's and our own API",
            scope: Build,
            find: || on_path("protoc"),
            source: Source::Packages(&["protobuf-compiler"]),
            hint: "package protobuf-compiler or protobuf",
        },
        Requirement {
            name: "eBPF compiler",
            why: "builds the eBPF programs",
            scope: Build,
            find: ebpf_compiler,
            source: Source::EbpfCompiler,
            hint: "rustup toolchain install nightly --profile minimal --component rust-src",
        },
        Requirement {
            name: "bpf-linker",
            why: "links the eBPF programs",
            scope: Build,
            find: || on_path("bpf-linker"),
            source: Source::BpfLinker,
            hint: "cargo install bpf-linker --version 0.13.0",
        },
        Requirement {
            name: "ip",
            why: "network namespaces of the nodes",
            scope: Run,
            find: || on_path("ip"),
            source: Source::Packages(&["iproute2"]),
            hint: "package iproute2 (busybox's ip is not enough)",
        },
        Requirement {
            name: "containerd",
            why: "runs the containers",
            scope: Run,
            find: || version_of("containerd", &["--version"]),
            source: Source::Packages(&["containerd"]),
            hint: "package containerd, 1.6 or newer, with ctr and containerd-shim-runc-v2",
        },
        Requirement {
            name: "runc",
            why: "starts the containers",
            scope: Run,
            find: || version_of("runc", &["--version"]),
            source: Source::Packages(&["runc"]),
            hint: "package runc",
        },
        Requirement {
            name: "busybox",
            why: "in the demo's images; must be static",
            scope: Run,
            find: || {
                tools::static_busybox()
                    .ok()
                    .map(|path| path.display().to_string())
            },
            source: Source::Packages(&["busybox-static"]),
            hint: "package busybox-static: a busybox that needs no library",
        },
        Requirement {
            name: "kubectl",
            why: "talks to the cluster",
            scope: Run,
            find: || tools::kubectl(None).ok().map(|tool| found(&tool)),
            source: KUBECTL_1_32,
            hint: "package kubectl or kubernetes-client, or https://kubernetes.io/docs/tasks/tools/",
        },
        Requirement {
            name: "bpftool",
            why: "shows programs and maps in tests",
            scope: Ci,
            find: || on_path("bpftool"),
            source: Source::Packages(&["bpftool"]),
            hint: "package bpftool",
        },
        Requirement {
            name: "docker-registry",
            why: "tests of pulling images",
            scope: Ci,
            find: || {
                tools::find_installed("docker-registry").map(|path| path.display().to_string())
            },
            source: Source::Own {
                package: "docker-registry",
                folder: "docker-registry",
            },
            hint: "package docker-registry, or the distribution registry as `docker-registry`",
        },
        Requirement {
            name: "containerd 1.6",
            why: "the oldest supported; test matrix",
            scope: Ci,
            find: || containerd("1.6"),
            source: Source::Suite {
                suite: "bookworm",
                package: "containerd",
                folder: "containerd-1.6",
            },
            hint: "unpack containerd 1.6 below target/tools/containerd-1.6/usr/bin",
        },
        Requirement {
            name: "containerd 2",
            why: "the newest supported; test matrix",
            scope: Ci,
            find: || containerd("2"),
            source: Source::Suite {
                suite: "sid",
                package: "containerd",
                folder: "containerd-2",
            },
            hint: "unpack containerd 2.1 below target/tools/containerd-2/usr/bin",
        },
        Requirement {
            name: "kubectl 1.32",
            why: "test matrix",
            scope: Ci,
            find: || kubectl("1.32"),
            source: KUBECTL_1_32,
            hint: "put kubectl 1.32 into target/tools/kubectl-1.32/usr/bin",
        },
        Requirement {
            name: "kubectl 1.36",
            why: "test matrix",
            scope: Ci,
            find: || kubectl("1.36"),
            source: Source::Suite {
                suite: "sid",
                package: "kubectl",
                folder: "kubectl-1.36",
            },
            hint: "put kubectl 1.36 into target/tools/kubectl-1.36/usr/bin",
        },
        Requirement {
            name: "cargo-deny",
            why: "licences and sources of dependencies",
            scope: Ci,
            find: || on_path("cargo-deny"),
            source: Source::Cargo("cargo-deny"),
            hint: "cargo install --locked cargo-deny",
        },
        Requirement {
            name: "nft",
            why: "rule sets that measurements compare with",
            scope: Bench,
            find: || on_path("nft"),
            source: Source::Packages(&["nftables"]),
            hint: "package nftables",
        },
        Requirement {
            name: "iptables",
            why: "rule sets that measurements compare with",
            scope: Bench,
            find: || on_path("iptables-restore"),
            source: Source::Packages(&["iptables"]),
            hint: "package iptables",
        },
    ];
    ALL
}

const KUBECTL_1_32: Source = Source::Suite {
    suite: "trixie",
    package: "kubectl",
    folder: "kubectl-1.32",
};

fn on_path(program: &str) -> Option<String> {
    tools::find(program).map(|path| path.display().to_string())
}

fn version_of(program: &str, arguments: &[&str]) -> Option<String> {
    let path = tools::find(program)?;
    let text = command::run(Command::new(&path).args(arguments)).ok()?;
    let line = text.lines().next().unwrap_or_default();
    Some(
        line.rsplit(' ')
            .find(|word| !word.is_empty())
            .unwrap_or_default()
            .to_owned(),
    )
    .map(|version| format!("{} ({version})", path.display()))
}

fn found(tool: &tools::Versioned) -> String {
    let path = tool
        .path
        .strip_prefix(tholepin_harness::workspace_root())
        .unwrap_or(&tool.path);
    format!("{} ({})", path.display(), tool.version)
}

fn containerd(version: &str) -> Option<String> {
    tools::containerd(Some(version))
        .ok()
        .map(|tool| found(&tool))
}

fn kubectl(version: &str) -> Option<String> {
    tools::kubectl(Some(version)).ok().map(|tool| found(&tool))
}

/// The compiler that the build script would take. It also looks for the linker, which has a line of
/// its own here, so a missing linker does not make the compiler missing.
fn ebpf_compiler() -> Option<String> {
    toolchain::compiler().map(|(rustc, _, origin)| format!("{} ({origin})", rustc.display()))
}

/// Whether the eBPF programs are built by Debian's compiler and not by rustup's.
pub(super) fn ebpf_compiler_is_debians() -> bool {
    toolchain::compiler().is_some_and(|(rustc, _, _)| rustc == Path::new("/usr/bin/rustc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_says_what_it_is_for_and_how_to_get_it() {
        for requirement in all() {
            assert!(!requirement.why.is_empty() && !requirement.hint.is_empty());
        }
    }

    #[test]
    fn every_requirement_says_what_setup_would_install() {
        let plan = |name: &str| {
            let found = all().iter().find(|one| one.name == name);
            found.expect("it is in the list").source.plan()
        };
        assert_eq!(plan("ip"), "apt-get install iproute2");
        assert_eq!(plan("C compiler"), "apt-get install gcc libc6-dev");
        assert_eq!(plan("cargo-deny"), "cargo install cargo-deny");
        assert_eq!(
            plan("kubectl 1.36"),
            "unpack kubectl of Debian sid below target/tools/kubectl-1.36"
        );
        for requirement in all() {
            let plan = requirement.source.plan();
            assert!(
                plan.contains("install ") || plan.contains("unpack "),
                "{plan}"
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().iter().map(|one| one.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }
}
