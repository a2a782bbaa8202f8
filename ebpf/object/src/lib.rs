//! The compiled eBPF object, built by this crate's build script and embedded.
//!
//! The object holds every program and map of `ebpf/programs`; its licence section says
//! "Dual MIT/GPL". Nothing else belongs here: loading it is the agent's `dataplane`.

/// Gives the embedded bytes the alignment ELF readers want.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/tholepin-ebpf.o"
)));

/// The ELF object, aligned to 8 bytes.
pub static OBJECT: &[u8] = &EMBEDDED.0;

#[cfg(test)]
mod tests {
    use super::OBJECT;

    #[test]
    fn the_object_is_an_aligned_elf_file_for_bpf() {
        assert_eq!(OBJECT.as_ptr().align_offset(8), 0);
        assert_eq!(&OBJECT[..4], b"\x7fELF");
        assert_eq!(
            u16::from_le_bytes([OBJECT[18], OBJECT[19]]),
            247,
            "e_machine is EM_BPF"
        );
    }

    #[test]
    fn the_licence_allows_gpl_only_helpers() {
        let licence = b"Dual MIT/GPL\0";
        assert!(
            OBJECT
                .windows(licence.len())
                .any(|window| window == licence)
        );
    }
}
