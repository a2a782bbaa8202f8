//! The guest's only file system: busybox, kernel modules, the test programs and the tools they start,
//! with their shared libraries, as a cpio archive. The init script is generated.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tholepin_harness::{command, tools};

use super::Job;
use super::modules::Module;

/// What tests start.
const TOOLS: [&str; 4] = ["ip", "tc", "nsenter", "bpftool"];
/// Before every line of the script's own, so that a report can be made of what the guest prints.
pub(super) const MARK: &str = "@@ ";
/// The longest a test program may take; emulated, everything is some ten times slower.
const PROGRAM_SECONDS: u32 = 1200;

/// Writes the archive.
pub(super) fn write(image: &Path, modules: &[Module], jobs: &[Job<'_>]) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot write {}", image.display()))?;
    let mut archive = Archive {
        out: BufWriter::new(file),
        inode: 1,
    };
    for folder in [
        "bin", "sbin", "usr", "usr/bin", "proc", "sys", "dev", "run", "tmp", "etc", "modules",
        "tests",
    ] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.file("bin/busybox", &fs::read(tools::static_busybox()?)?)?;
    archive.file("init", script(modules, jobs).as_bytes())?;
    for (number, module) in modules.iter().enumerate() {
        archive.file(&module_path(number, &module.name), &module.content)?;
    }
    let mut libraries = BTreeSet::new();
    for name in TOOLS {
        let path = tools::find(name).with_context(|| format!("{name} is missing"))?;
        libraries.extend(shared_libraries(&path)?);
        archive.file(&format!("usr/bin/{name}"), &fs::read(&path)?)?;
    }
    for (number, job) in jobs.iter().enumerate() {
        let path = &job.program.executable;
        libraries.extend(shared_libraries(path)?);
        archive.file(&job_path(number), &stripped(path)?)?;
    }
    let mut folders = BTreeSet::new();
    for library in &libraries {
        for folder in library
            .ancestors()
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            if folder != Path::new("/") && folders.insert(folder.to_owned()) {
                archive.folder(&relative(folder))?;
            }
        }
        // A library's path is usually a link; the archive has its content there.
        archive.file(&relative(library), &fs::read(library)?)?;
    }
    archive.finish()
}

fn relative(path: &Path) -> String {
    path.display()
        .to_string()
        .trim_start_matches('/')
        .to_owned()
}

fn module_path(number: usize, name: &str) -> String {
    format!("modules/{number:02}-{name}.ko")
}

fn job_path(number: usize) -> String {
    format!("tests/{number}")
}

/// What the guest does from its start to its end.
fn script(modules: &[Module], jobs: &[Job<'_>]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/bin:/bin:/sbin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=0\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         exec >/dev/ttyS1 2>&1 </dev/null\n",
    );
    for (number, module) in modules.iter().enumerate() {
        let path = module_path(number, &module.name);
        let name = &module.name;
        script += &format!("insmod /{path} || echo '{MARK}no-module {name}'\n");
    }
    script += "ip link set lo up\n\
               export THOLEPIN_SKIP_REPORT=/tmp/skipped\n";
    script += &format!("echo \"{MARK}kernel $(uname -r)\"\n");
    for (number, job) in jobs.iter().enumerate() {
        let arguments: String = job
            .arguments
            .iter()
            .map(|argument| format!(" '{}'", argument.replace('\'', "'\\''")))
            .collect();
        script += &format!(
            "echo '{MARK}begin {number}'\n\
             : > /tmp/skipped\n\
             cd /tmp; CARGO_MANIFEST_DIR=/tmp timeout {PROGRAM_SECONDS} /{}{arguments} --test-threads 2\n\
             code=$?\n\
             sed 's/^/{MARK}skip /' /tmp/skipped\n\
             echo \"{MARK}end {number} $code\"\n",
            job_path(number)
        );
    }
    // Programs of the kernel wrote to the console; what is important there has to be seen as well.
    script += &format!(
        "dmesg | grep -E 'BUG|WARNING|Oops|Call Trace' | sed 's/^/{MARK}kernel-log /'\n\
         echo '{MARK}done'\n\
         sync; poweroff -f\n"
    );
    script
}

/// The libraries and the loader of a program, by its own loader's account.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = command::run(Command::new("ldd").arg(program));
    let Ok(listing) = listing else {
        // A static program.
        return Ok(Vec::new());
    };
    Ok(libraries_in(&listing))
}

fn libraries_in(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let place = line.rsplit_once("=> ").map_or(line, |(_, place)| place);
        let place = place.trim().split(' ').next()?;
        place.starts_with('/').then(|| PathBuf::from(place))
    };
    listing.lines().filter_map(path).collect()
}

/// A program without its debug information, which is most of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    if tools::find("strip").is_none() {
        return Ok(fs::read(program)?);
    }
    let small = tempfile::NamedTempFile::new()?;
    let mut strip = Command::new("strip");
    command::run(strip.arg("-o").arg(small.path()).arg(program))?;
    Ok(fs::read(small.path())?)
}

/// A cpio archive in the format `newc`.
struct Archive<W: Write> {
    out: W,
    inode: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl<W: Write> Archive<W> {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, FOLDER, (0, 0), &[])
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, PROGRAM, (0, 0), content)
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[])
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).context("a file of 4 GiB")?;
        let name_len = u32::try_from(name.len() + 1).context("a name of 4 GiB")?;
        self.inode += 1;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_len, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())?;
        Ok(())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_one_that_cpio_readers_understand() {
        let mut out = Vec::new();
        let mut archive = Archive {
            out: &mut out,
            inode: 0,
        };
        archive.folder("bin").unwrap();
        archive.file("bin/x", b"hello").unwrap();
        archive.finish().unwrap();
        let mut listing = Command::new(tools::static_busybox().unwrap())
            .args(["cpio", "-t"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        listing.stdin.take().unwrap().write_all(&out).unwrap();
        let output = listing.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "bin\nbin/x\n");
    }

    #[test]
    fn libraries_are_taken_from_both_kinds_of_lines() {
        let listing = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            libraries_in(listing),
            [
                PathBuf::from("/lib/x/libc.so.6"),
                PathBuf::from("/lib64/ld.so.2")
            ]
        );
    }
}
