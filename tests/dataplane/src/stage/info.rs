//! What the kernel tells of the loaded programs.

use super::{Hook, Stage};

impl Stage {
    /// Instructions the verifier looked at, of the 1,000,000 it allows. Kernel 5.16.
    pub fn verified_instructions(&mut self, hook: Hook) -> Option<u32> {
        let info = self.program(hook).info().expect("the program is loaded");
        info.verified_instruction_count()
    }
}
