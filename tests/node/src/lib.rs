//! Agent and containerd end to end, without a control plane of ours.
