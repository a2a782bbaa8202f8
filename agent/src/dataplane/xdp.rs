//! Attaches the front door to underlay interfaces, replaces a former agent's in place, and takes it off.

use std::io;
use std::str::FromStr;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use tholepin_ebpf_abi::names::XDP_FRONT;

use super::attach::{self, AttachError};
use super::loader::Programs;
use super::pin::PinDirectory;
use crate::netlink::link::Link;

/// Stands for the program in the pins of links in generic mode: a link cannot change its mode.
const GENERIC: &str = "xdp_generic";

/// Where the front door is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpFront {
    /// Nowhere: everything is TC's.
    #[default]
    Off,
    /// On interfaces of devices whose drivers can; others are left to TC with a message.
    Auto,
    /// In the driver of every underlay interface.
    Native,
    /// Behind the driver, where there is a socket buffer already: for tests, and slower than TC.
    Generic,
}

/// The text is not one of the modes.
#[derive(Debug, thiserror::Error)]
#[error("expected `off`, `auto`, `native` or `generic`")]
pub struct InvalidXdpFront;

impl FromStr for XdpFront {
    type Err = InvalidXdpFront;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            _ => Err(InvalidXdpFront),
        }
    }
}

/// The mode for an interface; `None` for one that is left to TC.
fn mode_of(front: XdpFront, link: &Link) -> Option<XdpMode> {
    match front {
        XdpFront::Off => None,
        XdpFront::Native => Some(XdpMode::Driver),
        XdpFront::Generic => Some(XdpMode::Skb),
        // A device of software has a kind. Frames of `veth` may have checksums that are yet to be
        // computed, which XDP neither sees nor hands on; other kinds have nothing to gain.
        XdpFront::Auto => link.kind.is_none().then_some(XdpMode::Driver),
    }
}

/// Puts the front door on `link`, or takes it off, as configured.
pub fn ensure_attached(
    programs: &mut Programs,
    pins: &PinDirectory,
    front: XdpFront,
    link: &Link,
) -> Result<(), AttachError> {
    let Some(mode) = mode_of(front, link) else {
        if front == XdpFront::Auto {
            tracing::info!(
                interface = link.name,
                kind = link.kind,
                "not a device whose driver could take XDP: TC does all of the work"
            );
        }
        return detach(pins, &link.name);
    };
    let (name, other) = match mode {
        XdpMode::Skb => (GENERIC, XDP_FRONT),
        _ => (XDP_FRONT, GENERIC),
    };
    attach::forget(pins, other, &link.name)?;
    let pin = pins.link(&link.name, name);
    let program = programs.xdp()?;
    if pin.exists() {
        match replace(program, &pin) {
            Ok(()) => return Ok(()),
            // The interface the link was on is gone; one of the same name has none yet.
            Err(error) if is_errno(&error, libc::ENOLINK) => {
                attach::forget(pins, name, &link.name)?;
            }
            Err(error) => return Err(error),
        }
    }
    let failed = |source| AttachError::Attach {
        program: XDP_FRONT,
        interface: link.name.clone(),
        source,
    };
    let id = program
        .attach_to_if_index(link.index, mode)
        .map_err(failed)?;
    let taken = program.take_link(id).map_err(failed)?;
    let taken = FdLink::try_from(taken).map_err(|source| AttachError::Link {
        path: pin.clone(),
        source,
    })?;
    // If pinning fails the link is dropped, which detaches it: nothing half-made stays.
    taken
        .pin(&pin)
        .map_err(|source| AttachError::Pin { path: pin, source })?;
    Ok(())
}

/// Takes the front door off an interface.
pub fn detach(pins: &PinDirectory, interface: &str) -> Result<(), AttachError> {
    attach::forget(pins, XDP_FRONT, interface)?;
    attach::forget(pins, GENERIC, interface)
}

/// Takes it off all interfaces but these, which may also be gone.
pub fn detach_others(pins: &PinDirectory, keep: &[String]) -> Result<(), AttachError> {
    let links = pins
        .links()
        .map_err(|source| AttachError::Pins { source })?;
    for (interface, program) in links {
        if (program == XDP_FRONT || program == GENERIC) && !keep.contains(&interface) {
            attach::forget(pins, &program, &interface)?;
        }
    }
    Ok(())
}

fn replace(program: &mut Xdp, pin: &std::path::Path) -> Result<(), AttachError> {
    let failed = |source| AttachError::Link {
        path: pin.to_owned(),
        source,
    };
    let pinned = PinnedLink::from_pin(pin).map_err(failed)?;
    let link = XdpLink::try_from(FdLink::from(pinned)).map_err(failed)?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin keeps the link; only our descriptor of it is closed here.
            drop(program.take_link(id));
            Ok(())
        }
        Err(source) => Err(AttachError::Attach {
            program: XDP_FRONT,
            interface: pin.display().to_string(),
            source,
        }),
    }
}

fn is_errno(error: &AttachError, errno: i32) -> bool {
    let AttachError::Attach { source, .. } = error else {
        return false;
    };
    let io: Option<&io::Error> = match source {
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    };
    io.and_then(io::Error::raw_os_error) == Some(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<&str>) -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            mac: None,
            up: true,
            kind: kind.map(str::to_owned),
        }
    }

    #[test]
    fn only_devices_get_the_front_door_without_being_asked() {
        let mode = |front, kind| mode_of(front, &link(kind)).is_some();
        assert!(mode(XdpFront::Auto, None));
        assert!(!mode(XdpFront::Auto, Some("veth")));
        assert!(!mode(XdpFront::Auto, Some("bond")));
        assert!(mode(XdpFront::Native, Some("veth")));
        assert!(!mode(XdpFront::Off, None));
    }

    #[test]
    fn modes_are_read_by_their_names_only() {
        assert_eq!("native".parse::<XdpFront>().unwrap(), XdpFront::Native);
        let error = "on".parse::<XdpFront>().unwrap_err().to_string();
        assert!(error.contains("`auto`"), "{error}");
    }
}
