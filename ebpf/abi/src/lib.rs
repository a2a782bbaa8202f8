//! Map layouts, names and drop reasons shared by the eBPF programs and user space.
