//! Why a packet was not forwarded. Codes are stable: they index `DROPS` and are metric labels.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $label:literal, $description:literal;)+) => {
        /// The reason of a drop or of a rejection, and its index in `DROPS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $(#[doc = $description] $name = $code),+ }

        impl DropReason {
            /// Every reason, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name in metrics and tables.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $description),+ }
            }

            /// The reason with this code.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

drop_reasons! {
    Malformed = 0, "malformed", "The packet is cut short or its headers contradict each other.";
    UnsupportedEtherType = 1, "unsupported_ether_type", "Neither IPv4, IPv6 nor ARP.";
    SpoofedSource = 2, "spoofed_source", "A pod sent from an address that is not its own.";
    NoBackend = 3, "no_backend", "Rejected: the Service has no endpoint.";
    NoLocalBackend = 4, "no_local_backend", "The Service may only use endpoints of this node, and there is none.";
    BackendMissing = 5, "backend_missing", "The maps name a backend that is not there.";
    SourcePortCollision = 6, "source_port_collision", "No free source port to tell two translated flows apart.";
    ConntrackFull = 7, "conntrack_full", "The connection could not be recorded.";
    UntrackedReset = 8, "untracked_reset", "A TCP RST to a Service that belongs to no connection.";
    OrphanFragment = 9, "orphan_fragment", "A fragment whose first fragment was not seen.";
    NoRoute = 10, "no_route", "The destination is in no pod range and not this node.";
    UnknownWorkload = 11, "unknown_workload", "The overlay brought a packet for an address that is not on this node.";
    TtlExceeded = 12, "ttl_exceeded", "Answered with time exceeded: the hop limit ran out.";
    PacketTooBig = 13, "packet_too_big", "Answered with the MTU: larger than the overlay carries.";
    UnsupportedMulticast = 14, "unsupported_multicast", "Multicast other than neighbour discovery.";
    RewriteFailed = 15, "rewrite_failed", "The kernel refused to change the packet.";
    TunnelFailed = 16, "tunnel_failed", "The kernel refused the tunnel key.";
    UnsupportedProtocol = 17, "unsupported_protocol", "A transport protocol Services cannot carry, sent to a Service address.";
    PolicyIngress = 18, "policy_ingress", "No NetworkPolicy of the destination allows it.";
    PolicyEgress = 19, "policy_egress", "No NetworkPolicy of the source allows it.";
    SourceRange = 20, "source_range", "The client is in none of the Service's source ranges.";
    UnknownFrontend = 21, "unknown_frontend", "Another node sent traffic for a Service that is not known here.";
}

/// Number of entries of `DROPS`: room for reasons of later versions within one ABI.
pub const DROP_REASON_SLOTS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_labels_are_unique_and_metric_safe() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(DropReason::from_code(index as u32), Some(*reason));
            assert!(
                reason
                    .label()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
            let same = DropReason::ALL
                .iter()
                .filter(|other| other.label() == reason.label());
            assert_eq!(same.count(), 1, "{}", reason.label());
        }
        assert!(DropReason::ALL.len() <= DROP_REASON_SLOTS as usize);
        assert_eq!(DropReason::from_code(DROP_REASON_SLOTS), None);
    }
}
