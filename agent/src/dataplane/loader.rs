//! Loads the object: programs specialised by globals, on maps pinned by name.

use aya::maps::Map;
use aya::programs::{CgroupSockAddr, ProgramError, RawTracePoint, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use std::net::IpAddr;
use tholepin_ebpf_abi::{Address, globals, names};
use tholepin_ebpf_object::OBJECT;

use super::features::Features;
use super::pin::PinDirectory;

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to load the eBPF object")]
    Object { source: EbpfError },
    #[error("program {program} is missing in the eBPF object")]
    MissingProgram { program: &'static str },
    #[error("failed to load program {program}")]
    Program {
        program: &'static str,
        source: ProgramError,
    },
}

/// What the programs are told about this node.
#[derive(Clone, Copy, Debug)]
pub struct NodeConstants {
    pub gateway_v4: Option<IpAddr>,
    pub gateway_v6: Option<IpAddr>,
    pub node_v4: Option<IpAddr>,
    pub node_v6: Option<IpAddr>,
    pub host_ifindex: u32,
    pub overlay_ifindex: u32,
    pub overlay_mtu: u32,
    pub overlay_port: u16,
    /// Capacity of `CONNTRACK`, where it is not there yet.
    pub conntrack_entries: u32,
}

/// A node without addresses and devices: for programs that are loaded and attached to nothing.
impl Default for NodeConstants {
    fn default() -> Self {
        Self {
            gateway_v4: None,
            gateway_v6: None,
            node_v4: None,
            node_v6: None,
            host_ifindex: 0,
            overlay_ifindex: 0,
            overlay_mtu: 1450,
            overlay_port: 8472,
            conntrack_entries: names::CONNTRACK_CAPACITY as u32,
        }
    }
}

/// Loaded programs. Dropping it detaches nothing: every link is pinned or forgotten at once.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Creates or reuses the pinned maps and loads every program.
    pub fn load(
        pins: &PinDirectory,
        features: Features,
        node: &NodeConstants,
    ) -> Result<Self, LoadError> {
        let address = |ip: Option<IpAddr>| ip.map_or(Address::UNSPECIFIED, Address::from);
        let (gateway_v4, gateway_v6) = (address(node.gateway_v4), address(node.gateway_v6));
        let (node_v4, node_v6) = (address(node.node_v4), address(node.node_v6));
        let redirect_peer = u32::from(features.redirect_peer);
        let overlay_port = u32::from(node.overlay_port);
        let csum_ipv6 = u32::from(features.csum_ipv6);
        let mut loader = EbpfLoader::new();
        loader
            .override_global(globals::GATEWAY_V4, &gateway_v4, true)
            .override_global(globals::GATEWAY_V6, &gateway_v6, true)
            .override_global(globals::NODE_V4, &node_v4, true)
            .override_global(globals::NODE_V6, &node_v6, true)
            .override_global(globals::HOST_IFINDEX, &node.host_ifindex, true)
            .override_global(globals::OVERLAY_IFINDEX, &node.overlay_ifindex, true)
            .override_global(globals::OVERLAY_PORT, &overlay_port, true)
            .override_global(globals::OVERLAY_MTU, &node.overlay_mtu, true)
            .override_global(globals::REDIRECT_PEER, &redirect_peer, true)
            .override_global(globals::CSUM_IPV6, &csum_ipv6, true);
        loader.map_max_entries(names::CONNTRACK, node.conntrack_entries);
        for name in names::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let ebpf = loader
            .load(OBJECT)
            .map_err(|source| LoadError::Object { source })?;
        let mut programs = Self { ebpf };
        for name in names::PROGRAMS {
            let program = programs.get(name)?;
            patiently(|| program.load()).map_err(|source| LoadError::Program {
                program: name,
                source,
            })?;
        }
        Ok(programs)
    }

    /// The program of that name.
    pub fn get(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        self.ebpf
            .program_mut(name)
            .ok_or(LoadError::MissingProgram { program: name })?
            .try_into()
            .map_err(|source| LoadError::Program {
                program: name,
                source,
            })
    }

    /// The program that removes flows that are over.
    pub fn cleaner(&mut self) -> Option<&mut RawTracePoint> {
        self.ebpf.program_mut(names::CLEANER)?.try_into().ok()
    }

    /// A map that is not pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.ebpf.map(name)
    }

    /// A program for sockets, loaded when it is first asked for: kernels and configurations that do
    /// not use it need not be able to.
    pub fn socket(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, LoadError> {
        let failed = |source| LoadError::Program {
            program: name,
            source,
        };
        let program: &mut CgroupSockAddr = self
            .ebpf
            .program_mut(name)
            .ok_or(LoadError::MissingProgram { program: name })?
            .try_into()
            .map_err(failed)?;
        if program.fd().is_err() {
            patiently(|| program.load()).map_err(failed)?;
        }
        Ok(program)
    }

    /// The front door, loaded when it is first asked for.
    pub fn xdp(&mut self) -> Result<&mut Xdp, LoadError> {
        let program = names::XDP_FRONT;
        let failed = |source| LoadError::Program { program, source };
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut(program)
            .ok_or(LoadError::MissingProgram { program })?
            .try_into()
            .map_err(failed)?;
        if xdp.fd().is_err() {
            patiently(|| xdp.load()).map_err(failed)?;
        }
        Ok(xdp)
    }
}

/// Loads again while the verifier is interrupted: it gives up when the thread has a signal to see to.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 5;
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    load()
}
