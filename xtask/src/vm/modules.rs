//! Kernel modules with what they depend on, in the order in which they can be loaded. The packages have
//! no `modules.dep` (it is made when they are installed), so the modules themselves are asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A module, uncompressed.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// Those of `wanted` that are modules, each behind its dependencies. What is not there is built in, or
/// the kernel lacks it, which the guest finds out.
pub(super) fn resolve(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut paths = BTreeMap::new();
    index(&folder.join("kernel"), &mut paths)?;
    let mut modules = Vec::new();
    for name in wanted {
        add(name, &paths, &mut modules)?;
    }
    Ok(modules)
}

fn index(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, paths)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, "ko" | "ko.xz")) = name.split_once('.')
        {
            paths.insert(normal(name), path);
        }
    }
    Ok(())
}

/// A file may have dashes where the module has underscores.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn add(name: &str, paths: &BTreeMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    let name = normal(name);
    let Some(path) = paths.get(&name) else {
        return Ok(());
    };
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = read(path).with_context(|| format!("cannot read {}", path.display()))?;
    for dependency in dependencies(&content) {
        add(&dependency, paths, modules)?;
    }
    modules.push(Module { name, content });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return Ok(fs::read(path)?);
    }
    let output = Command::new("xz").args(["-d", "-c"]).arg(path).output()?;
    ensure!(
        output.status.success(),
        "xz: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The `depends=` entry of a module's information section, a list of C strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = &module[at + KEY.len()..];
    let end = list.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_what_it_depends_on_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let drivers = directory.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        let write = |name: &str, depends: &str| {
            let content = format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(drivers.join(name), content).unwrap();
        };
        write("vxlan.ko", "udp_tunnel,ip6_udp_tunnel");
        write("udp_tunnel.ko", "");
        write("ip6-udp-tunnel.ko", "udp_tunnel");
        let modules = resolve(directory.path(), &["veth", "vxlan", "udp_tunnel"]).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["udp_tunnel", "ip6_udp_tunnel", "vxlan"]);
    }
}
