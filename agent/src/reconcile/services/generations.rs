//! Backend generations that no former agent has used: blocks are reserved on disk ahead.

use std::path::{Path, PathBuf};

use crate::ipam::{IpamError, write_durably};

/// The next generation, and how far they are reserved.
#[derive(Debug)]
pub struct Generations {
    path: PathBuf,
    next: u32,
    reserved: u32,
}

impl Generations {
    const BLOCK: u32 = 1 << 20;

    /// Skips whatever a former agent had reserved.
    pub fn open(state_dir: &Path) -> Result<Self, IpamError> {
        let path = state_dir.join("backend-generation");
        // Without the file nothing was ever handed out on this node, or its state was wiped as a whole.
        let next = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .unwrap_or(1);
        let mut generations = Self {
            path,
            next,
            reserved: next,
        };
        generations.reserve()?;
        Ok(generations)
    }

    /// First generation that was not used.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.next
    }

    fn reserve(&mut self) -> Result<(), IpamError> {
        let reserved = self.next.wrapping_add(Self::BLOCK);
        write_durably(&self.path, reserved.to_string().as_bytes())?;
        self.reserved = reserved;
        Ok(())
    }

    /// Everything below `next` is used now.
    pub fn use_up_to(&mut self, next: u32) -> Result<(), IpamError> {
        self.next = next;
        // Less than half a block left: there is room for any single plan.
        if self.reserved.wrapping_sub(next) < Self::BLOCK / 2 {
            self.reserve()?;
        }
        Ok(())
    }
}
