//! Attaches programs so that they outlive the agent, and replaces them without a gap.
//!
//! TCX links are pinned and updated in place; clsact filters stay in the kernel by themselves and have
//! a fixed priority and handle, so that they are replaced in place too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle,
};
use aya::programs::{LinkOrder, ProgramError};
use tholepin_ebpf_abi::names;

use super::features::Features;
use super::loader::{LoadError, Programs};
use super::pin::{PinDirectory, PinError};

/// Filters of ours on a clsact qdisc.
const PRIORITY: u16 = 1;
/// The same on an interface that is not ours alone, where the first priorities may be taken.
pub const UNDERLAY_PRIORITY: u16 = 0x7468;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Why a program is not on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("failed to attach {program} to {interface}")]
    Attach {
        program: &'static str,
        interface: String,
        source: ProgramError,
    },
    #[error("failed to add the clsact qdisc to {interface}")]
    Qdisc { interface: String, source: TcError },
    #[error("failed to use the pinned link {}", path.display())]
    Link { path: PathBuf, source: LinkError },
    #[error("failed to replace the program behind the pinned link {}", path.display())]
    LinkCall { path: PathBuf, source: io::Error },
    #[error("failed to open the cgroup {}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("failed to pin the link {}", path.display())]
    Pin {
        path: PathBuf,
        source: aya::pin::PinError,
    },
    #[error("failed to remove the pin {}", path.display())]
    Unpin { path: PathBuf, source: io::Error },
    #[error("failed to look for pinned links")]
    Pins { source: PinError },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Where a program belongs.
#[must_use]
pub fn hook(program: &'static str) -> TcAttachType {
    match program {
        names::HOST_EGRESS | names::LOCAL_OUT => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    }
}

fn priority(program: &str) -> u16 {
    match program {
        names::UNDERLAY_IN | names::LOCAL_OUT => UNDERLAY_PRIORITY,
        _ => PRIORITY,
    }
}

/// Puts `program` on `interface`, replacing a former agent's in place.
pub fn ensure_attached(
    programs: &mut Programs,
    pins: &PinDirectory,
    features: Features,
    program: &'static str,
    interface: &str,
) -> Result<(), AttachError> {
    let pin = pins.link(interface, program);
    if features.tcx {
        ensure_tcx(programs, &pin, program, interface)?;
        // A former agent may have used clsact; two of the same would both see each packet.
        remove_filter(program, interface)
    } else {
        ensure_filter(programs, program, interface)?;
        unpin(&pin)
    }
}

/// Forgets the link of an interface that is gone or going.
pub fn forget(pins: &PinDirectory, program: &str, interface: &str) -> Result<(), AttachError> {
    unpin(&pins.link(interface, program))
}

/// Takes `program` off an interface that stays.
pub fn detach(
    pins: &PinDirectory,
    program: &'static str,
    interface: &str,
) -> Result<(), AttachError> {
    forget(pins, program, interface)?;
    remove_filter(program, interface)
}

fn unpin(pin: &Path) -> Result<(), AttachError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AttachError::Unpin {
            path: pin.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn ensure_tcx(
    programs: &mut Programs,
    pin: &Path,
    name: &'static str,
    interface: &str,
) -> Result<(), AttachError> {
    if replace_tcx(programs, pin, name)? {
        return Ok(());
    }
    let program = programs.get(name)?;
    let failed = |source| AttachError::Attach {
        program: name,
        interface: interface.to_owned(),
        source,
    };
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(interface, hook(name), options)
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|source| AttachError::Link {
        path: pin.to_owned(),
        source,
    })?;
    // If pinning fails the link is dropped, which detaches it: nothing half-made stays.
    link.pin(pin).map_err(|source| AttachError::Pin {
        path: pin.to_owned(),
        source,
    })?;
    Ok(())
}

/// Whether a pinned link was there and alive, and now runs the new program.
fn replace_tcx(
    programs: &mut Programs,
    pin: &Path,
    name: &'static str,
) -> Result<bool, AttachError> {
    if !pin.exists() {
        return Ok(false);
    }
    let failed = |source| AttachError::Link {
        path: pin.to_owned(),
        source,
    };
    let pinned = PinnedLink::from_pin(pin).map_err(failed)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(failed)?;
    let program = programs.get(name)?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin keeps the link; only our descriptor of it is closed here.
            drop(program.take_link(id));
            Ok(true)
        }
        // The interface the link was on is gone; one of the same name has none yet.
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            unpin(pin)?;
            Ok(false)
        }
        Err(source) => Err(AttachError::Attach {
            program: name,
            interface: pin.display().to_string(),
            source,
        }),
    }
}

fn ensure_filter(
    programs: &mut Programs,
    name: &'static str,
    interface: &str,
) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => (),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => (),
        Err(source) => {
            return Err(AttachError::Qdisc {
                interface: interface.to_owned(),
                source,
            });
        }
    }
    let program = programs.get(name)?;
    let failed = |source| AttachError::Attach {
        program: name,
        interface: interface.to_owned(),
        source,
    };
    let existing =
        SchedClassifierLink::attached(interface, hook(name), priority(name), HANDLE, None)
            .map_err(|source| failed(ProgramError::TcError(TcError::IoError(source))))?;
    let id = match program.attach_to_link(existing) {
        Ok(id) => id,
        // There is no filter of ours yet.
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::ENOENT) =>
        {
            let options = NlOptions {
                priority: priority(name),
                handle: HANDLE,
                classid: None,
            };
            let options = TcAttachOptions::Netlink(options);
            program
                .attach_with_options(interface, hook(name), options)
                .map_err(failed)?
        }
        Err(source) => return Err(failed(source)),
    };
    let link = program.take_link(id).map_err(failed)?;
    // A dropped link removes its filter, and the filter must outlive us.
    std::mem::forget(link);
    Ok(())
}

/// Takes our filter off an interface; one that is not there is done.
pub fn remove_filter(name: &'static str, interface: &str) -> Result<(), AttachError> {
    match tc::qdisc_detach_program(interface, hook(name), name) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // No clsact qdisc, hence no filter.
        Err(TcError::NetlinkError(error))
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) =>
        {
            Ok(())
        }
        Err(source) => Err(AttachError::Qdisc {
            interface: interface.to_owned(),
            source,
        }),
    }
}
