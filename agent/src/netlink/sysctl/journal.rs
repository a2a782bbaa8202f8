//! What the kernel switches of this namespace were before the agent changed them, so that `tholepin
//! detach-all` can put them back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{interfaces, path, read};
use crate::ipam::{IpamError, write_durably};

/// Values before the first change of this boot, by the name below `/proc/sys/net`.
#[derive(Clone, Debug)]
pub struct Journal {
    file: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    /// A boot sets everything back by itself.
    boot_id: String,
    before: BTreeMap<String, String>,
}

impl Journal {
    /// The journal of a state directory.
    #[must_use]
    pub fn at(state_dir: &Path) -> Self {
        Self {
            file: state_dir.join("sysctls-before.json"),
        }
    }

    /// Notes what the agent is about to change, unless an earlier run of this boot has. `ours` are devices
    /// that go away as a whole.
    pub fn remember(&self, boot_id: &str, ours: impl Fn(&str) -> bool) -> Result<(), IpamError> {
        let mut content = self.content(boot_id);
        let count = content.before.len();
        let is_new = content.boot_id != boot_id;
        boot_id.clone_into(&mut content.boot_id);
        let mut names = vec![
            "ipv4/ip_forward".to_owned(),
            "ipv6/conf/all/forwarding".to_owned(),
            "ipv4/ip_local_reserved_ports".to_owned(),
        ];
        for (family, switch) in [("ipv4", "rp_filter"), ("ipv6", "accept_ra")] {
            let foreign = interfaces(family).into_iter().filter(|name| !ours(name));
            names.extend(foreign.map(|name| format!("{family}/conf/{name}/{switch}")));
        }
        for name in names {
            if let Some(value) = read(&name) {
                content.before.entry(name).or_insert(value);
            }
        }
        if !is_new && content.before.len() == count {
            return Ok(());
        }
        let text = serde_json::to_vec(&content).expect("strings serialise");
        if let Some(directory) = self.file.parent() {
            // A directory that cannot be made is named by the error of the file in it.
            std::fs::create_dir_all(directory).ok();
        }
        write_durably(&self.file, &text)
    }

    fn content(&self, boot_id: &str) -> Content {
        let read = std::fs::read(&self.file).ok();
        let content: Option<Content> = read.and_then(|text| serde_json::from_slice(&text).ok());
        content
            .filter(|content| content.boot_id == boot_id)
            .unwrap_or_default()
    }

    /// Switches that are not what they were, with their former values.
    #[must_use]
    pub fn changed(&self, boot_id: &str) -> Vec<(String, String)> {
        let before = self.content(boot_id).before.into_iter();
        before
            .filter(|(name, value)| read(name).is_some_and(|now| now != *value))
            .collect()
    }

    /// Gives a switch its former value.
    pub fn restore(&self, name: &str, value: &str) -> io::Result<()> {
        // An empty list is written as an empty line.
        std::fs::write(path(name), format!("{value}\n"))
    }

    /// Forgets everything, once it is restored.
    pub fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_first_is_kept_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::at(directory.path());
        journal.remember("boot", |_| false).unwrap();
        assert_eq!(journal.changed("boot"), [], "nothing has changed");
        let mut content = journal.content("boot");
        let before = content
            .before
            .insert("ipv4/ip_forward".to_owned(), "7".to_owned());
        assert!(before.is_some(), "every kernel has it");
        std::fs::write(&journal.file, serde_json::to_vec(&content).unwrap()).unwrap();
        journal.remember("boot", |_| false).unwrap();
        assert_eq!(
            journal.changed("boot"),
            [("ipv4/ip_forward".to_owned(), "7".to_owned())]
        );
        assert_eq!(journal.changed("another"), []);
        journal.remember("another", |_| false).unwrap();
        assert_eq!(journal.changed("boot"), []);
        journal.forget().unwrap();
        journal.forget().unwrap();
        assert_eq!(journal.changed("another"), []);
    }
}
