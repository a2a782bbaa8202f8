//! A program of two instructions, run as the real ones are: what it costs is the clock and the call.
#![expect(
    unsafe_code,
    reason = "aya loads programs from objects only; two instructions need the system call"
)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The loaded program.
#[derive(Debug)]
pub(crate) struct EmptyProgram(OwnedFd);

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const SCHED_CLS: u32 = 3;
/// `r0 = 0; exit`.
const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];

/// The kernel's `union bpf_attr`, as words at byte offsets; what is not set is zero.
#[repr(C, align(8))]
struct Attributes([u8; 144]);

impl Attributes {
    fn new() -> Self {
        Self([0; 144])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn call(&mut self, command: libc::c_long) -> io::Result<libc::c_long> {
        // SAFETY: the attributes are as large as is said, and every pointer in them was made from a
        // live reference by the callers in this file, who hold it over the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                self.0.as_mut_ptr(),
                self.0.len() as libc::c_uint,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }
}

impl EmptyProgram {
    pub(crate) fn load() -> io::Result<Self> {
        let licence = c"Dual MIT/GPL";
        let mut attributes = Attributes::new();
        attributes.put(0, &SCHED_CLS.to_ne_bytes());
        attributes.put(4, &(INSTRUCTIONS.len() as u32).to_ne_bytes());
        attributes.put(8, &(INSTRUCTIONS.as_ptr() as u64).to_ne_bytes());
        attributes.put(16, &(licence.as_ptr() as u64).to_ne_bytes());
        let fd = attributes.call(PROG_LOAD)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Runs it once on a frame.
    pub(crate) fn run(&self, frame: &[u8]) -> io::Result<()> {
        let mut attributes = Attributes::new();
        attributes.put(0, &self.0.as_raw_fd().to_ne_bytes());
        attributes.put(8, &(frame.len() as u32).to_ne_bytes());
        attributes.put(16, &(frame.as_ptr() as u64).to_ne_bytes());
        attributes.call(PROG_TEST_RUN).map(drop)
    }

    /// Total nanoseconds and runs, counted while statistics are on.
    pub(crate) fn run_stats(&self) -> io::Result<(u64, u64)> {
        // `struct bpf_prog_info` up to `run_cnt`.
        let mut info = [0_u8; 232];
        let mut attributes = Attributes::new();
        attributes.put(0, &self.0.as_raw_fd().to_ne_bytes());
        attributes.put(4, &(info.len() as u32).to_ne_bytes());
        attributes.put(8, &(info.as_mut_ptr() as u64).to_ne_bytes());
        attributes.call(OBJ_GET_INFO_BY_FD)?;
        let word = |at: usize| {
            let bytes = info[at..at + 8].try_into();
            u64::from_ne_bytes(bytes.expect("eight bytes"))
        };
        Ok((word(RUN_TIME_NS), word(RUN_TIME_NS + 8)))
    }
}

/// Offset of `run_time_ns` in `struct bpf_prog_info`; `run_cnt` is behind it.
const RUN_TIME_NS: usize = 192;
