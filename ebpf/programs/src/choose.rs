//! Which backend a new flow gets: the client's last one, Maglev's, or one by chance.

use aya_ebpf::bindings::BPF_ANY;
use tholepin_ebpf_abi::conntrack::ticks;
use tholepin_ebpf_abi::service::FRONTEND_AFFINITY;
use tholepin_ebpf_abi::{
    Address, AffinityKey, AffinityValue, BackendValue, DropReason, FrontendValue,
};
use tholepin_ebpf_core::{flow, select};

use crate::maps::AFFINITY;
use crate::scratch::settle;
use crate::{lookup, skb};

/// Frontends read while the agent is changing a Service.
const ATTEMPTS: u32 = 4;

/// Slots that are searched for a client's backend. Behind them it is forgotten.
const MAX_SEARCHED: u32 = 1024;

/// A backend and its id.
pub type Chosen = (u32, &'static BackendValue);

/// The backend for a new flow of a client, as `AFFINITY` knows it. `number` is random, or with Maglev
/// the hash of the flow's tuple. `handed` says that another node has chosen this one.
#[inline(always)]
pub fn backend(
    frontend: &FrontendValue,
    client: &Address,
    number: u32,
    handed: bool,
) -> Result<Chosen, DropReason> {
    if frontend.flags & FRONTEND_AFFINITY == 0 {
        return one(frontend, number, handed);
    }
    let kept = remembered(frontend, client, u32::from(handed));
    if kept != 0 {
        if let Some(backend) = lookup::backend(kept) {
            return Ok((kept, backend));
        }
    }
    let (id, backend) = one(frontend, number, handed)?;
    remember(frontend, client, id, backend.generation);
    Ok((id, backend))
}

/// A backend by a number. A reader whose frontend is replaced by another one's meanwhile finds a slot
/// of a list that is not the frontend's, and reads the frontend again.
#[inline(always)]
fn one(frontend: &FrontendValue, number: u32, handed: bool) -> Result<Chosen, DropReason> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        // The frontend is read anew each time, not kept in registers.
        settle();
        let index = if handed {
            select::handed_slot(number, frontend)?
        } else {
            select::slot(number, frontend)?
        };
        let Some(slot) = lookup::slot(index) else {
            continue;
        };
        if slot.service_id != frontend.service_id {
            continue;
        }
        if let Some(backend) = lookup::backend(slot.backend_id) {
            if backend.generation != 0 {
                return Ok((slot.backend_id, backend));
            }
        }
    }
    Err(DropReason::BackendMissing)
}

#[inline(always)]
fn key(frontend: &FrontendValue, client: &Address) -> AffinityKey {
    AffinityKey {
        client: *client,
        service_id: frontend.service_id,
    }
}

/// The backend that a client has, if that is still one that it may be given; else 0. The time for
/// which it is kept begins anew.
#[inline(never)]
fn remembered(frontend: &FrontendValue, client: &Address, handed: u32) -> u32 {
    let key = key(frontend, client);
    let Some(value) = lookup::affinity(&key) else {
        return 0;
    };
    let now = skb::now();
    let entry = value.entry();
    if now.saturating_sub(entry.last_used) > ticks(frontend.affinity_timeout_s.into()) {
        return 0;
    }
    let id = entry.backend_id;
    if !flow::serves(entry.backend_generation, lookup::backend(id)) {
        return 0;
    }
    let (first, count) = select::eligible(frontend, handed != 0);
    if choose_has_slot(first, count, id, frontend.service_id) == 0 {
        return 0;
    }
    value.set_last_used(now);
    id
}

#[inline(never)]
fn remember(frontend: &FrontendValue, client: &Address, backend_id: u32, generation: u32) -> u32 {
    let value = AffinityValue {
        last_used: skb::now(),
        backend_id,
        backend_generation: generation,
    };
    // A full map evicts its oldest; if even that fails, the client's next flow chooses again.
    AFFINITY
        .insert(key(frontend, client), value, u64::from(BPF_ANY))
        .ok();
    0
}

/// Whether a backend is in a range of slots. A global function, which the verifier looks at once.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_has_slot(first: u32, count: u32, backend_id: u32, service_id: u32) -> u32 {
    let mut offset = 0;
    while offset < MAX_SEARCHED {
        if offset >= count {
            return 0;
        }
        if let Some(slot) = lookup::slot(first.wrapping_add(offset)) {
            if slot.backend_id == backend_id && slot.service_id == service_id {
                return 1;
            }
        }
        offset += 1;
    }
    0
}
