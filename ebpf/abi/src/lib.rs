//! Map layouts, names and drop reasons shared by the eBPF programs and user space.
//!
//! One file per map family. Every layout is `repr(C)`, made of fixed-width integers, byte arrays
//! and the newtypes of [`byte_order`], and proven free of padding when it is compiled. A change
//! of any layout, name or meaning bumps [`ABI_VERSION`], which is part of the pin path, so two
//! generations never share a map they read differently.
#![no_std]
#![warn(missing_docs)]
#![cfg_attr(
    feature = "user",
    expect(unsafe_code, reason = "`aya::Pod` for the map types, see `map_type!`")
)]

/// Version of everything in this crate; the pin directory is `<bpffs-root>/v<ABI_VERSION>`.
pub const ABI_VERSION: u32 = 2;

/// Declares a map key or value: `repr(C)`, comparable, zeroable, and provably without padding.
macro_rules! map_type {
    (
        $(#[$doc:meta])*
        pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $ty:ty),+ $(,)? }
    ) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),+ }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$ty>())+,
            concat!("implicit padding in ", stringify!($name)),
        );

        impl $name {
            /// Field names with their byte offsets, to compare with the object's BTF.
            pub const LAYOUT: &'static [(&'static str, usize)] =
                &[$((stringify!($field), ::core::mem::offset_of!($name, $field))),+];
        }

        // SAFETY: `repr(C)` without padding (asserted above); the fields are integers, byte
        // arrays and newtypes of them, for which every bit pattern is valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

pub mod affinity;
pub mod backend;
pub mod byte_order;
pub mod conntrack;
pub mod drop_reason;
pub mod event;
pub mod flow_stats;
pub mod fragment;
pub mod globals;
pub mod names;
pub mod policy;
pub mod route;
pub mod service;
pub mod socket;
pub mod source_range;
pub mod workload;

pub use affinity::{AffinityKey, AffinityValue};
pub use backend::{BackendValue, SlotValue};
pub use byte_order::{Address, Be16, Be32};
pub use conntrack::{ConntrackEntry, FlowKey};
pub use drop_reason::DropReason;
pub use event::{Event, EventSwitch};
pub use flow_stats::FlowStats;
pub use fragment::{FragmentKey, FragmentValue};
pub use policy::{PolicyPeerKey, PolicyPeerValue, PolicyPortKey, PolicyPortValue};
pub use route::{RouteKey, RouteValue};
pub use service::{FrontendKey, FrontendValue};
pub use socket::{SocketNetnsKey, SocketNetnsValue, SocketValue};
pub use source_range::{SourceRangeKey, SourceRangeValue};
pub use workload::{WorkloadValue, workload_index};
