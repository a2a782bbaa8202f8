//! What this kernel can do, probed once.

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use aya::util::KernelVersion;

use super::AttachMode;

/// Probed features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// TCX links: replaced atomically and pinned. Kernel 6.6.
    pub tcx: bool,
    /// `bpf_redirect_peer`. Kernel 5.10.
    pub redirect_peer: bool,
    /// `BPF_F_IPV6` of `bpf_l4_csum_replace`. Kernel 6.16.
    pub csum_ipv6: bool,
}

impl Features {
    /// Asks the kernel. `AttachMode::Clsact` hides TCX.
    #[must_use]
    pub fn probe(mode: AttachMode) -> Self {
        let version = KernelVersion::current().ok();
        let at_least =
            |major, minor| version.is_some_and(|v| v >= KernelVersion::new(major, minor, 0));
        // A kernel without TCX refuses the query's attach type; every namespace has `lo`.
        let tcx = mode == AttachMode::Auto
            && SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
        Self {
            tcx,
            redirect_peer: at_least(5, 10),
            csum_ipv6: at_least(6, 16),
        }
    }
}
