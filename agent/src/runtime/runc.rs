//! Options of containerd's runc shim, of which the client crate has no messages.

use std::path::Path;

use prost::Message;
use prost_types::Any;

/// Full name of the message, which containerd takes bare as the type's URL.
const TYPE: &str = "containerd.runc.v1.Options";

/// The one field set here, at its number in `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, Message)]
struct Options {
    /// Where runc keeps its state.
    #[prost(string, tag = "7")]
    root: String,
}

/// Runtime options for a container. runc's state goes below our own run directory: the shim's default
/// is one directory per containerd namespace for the whole machine, shared by every containerd on it.
pub(super) fn options(runtime: &str, run_dir: &Path) -> Option<Any> {
    if !runtime.starts_with("io.containerd.runc.") {
        return None;
    }
    let options = Options {
        root: run_dir.join("runc").display().to_string(),
    };
    Some(Any {
        type_url: TYPE.into(),
        value: options.encode_to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runc_gets_runcs_options() {
        let options = options("io.containerd.runc.v2", Path::new("/run/t")).expect("runc");
        // Field 7, length-delimited, 11 bytes.
        assert_eq!(options.value, b"\x3a\x0b/run/t/runc");
        assert!(super::options("io.containerd.kata.v2", Path::new("/run/t")).is_none());
    }
}
