//! `WORKLOADS`: the pod interfaces of this node, by address.
//!
//! Several parts of the agent own fields of one entry, and an entry can only be written as a whole.
//! So there is one owner, which remembers what is in the map and what each of them wants, also for
//! addresses that no pod has yet. Clones share it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::Array;
use tholepin_ebpf_abi::workload::{POLICY_DENY_ALL, WORKLOAD_BACKEND};
use tholepin_ebpf_abi::{Address, WorkloadValue, names, workload_index};

use super::{MapAccessError, Pinned, access, open, opened};
use crate::dataplane::pin::PinDirectory;

/// What is known of a pod's interface when it is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// 0 where the kernel does not tell.
    pub netns_cookie: u64,
}

/// The three policy fields of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    pub ingress: u32,
    pub egress: u32,
    pub generation: u32,
}

impl PodPolicy {
    /// Nothing in, nothing out.
    pub const DENY_ALL: Self = Self {
        ingress: POLICY_DENY_ALL,
        egress: POLICY_DENY_ALL,
        generation: 1,
    };
}

/// The owner of the map. Works before the map is opened: what is set is written when it is.
#[derive(Clone, Debug, Default)]
pub struct Workloads(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    map: Option<Array<Pinned, WorkloadValue>>,
    /// What the map holds.
    written: HashMap<Address, WorkloadValue>,
    backends: HashSet<Address>,
    policies: HashMap<Address, PodPolicy>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("open", &self.map.is_some())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Workloads {
    /// Opens the pinned map, and applies what has been set before.
    pub fn open(&self, pins: &PinDirectory) -> Result<(), MapAccessError> {
        let map = open(pins, names::WORKLOADS)?;
        let map: Array<_, WorkloadValue> = opened(pins, names::WORKLOADS, Array::try_from(map))?;
        let mut written = HashMap::new();
        for index in 0..map.len() {
            let value = access("read", names::WORKLOADS, map.get(&index, 0))?;
            if value.address != Address::UNSPECIFIED {
                written.insert(value.address, value);
            }
        }
        let mut state = self.state();
        state.map = Some(map);
        state.written = written;
        let wired: Vec<Address> = state.written.keys().copied().collect();
        for address in wired {
            state.apply_backend(address)?;
            state.apply_policy(address)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one insertion or removal, so it is whole after a panic too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a pod's interface. What others have set for the address stays.
    pub fn wire(&self, address: IpAddr, wiring: Wiring) -> Result<(), MapAccessError> {
        let address = Address::from(address);
        let mut state = self.state();
        let mut value = state.written.get(&address).copied().unwrap_or_default();
        value.address = address;
        value.ifindex = wiring.ifindex;
        value.mac = wiring.mac;
        value.netns_cookie = wiring.netns_cookie;
        if state.backends.contains(&address) {
            value.flags |= WORKLOAD_BACKEND;
        }
        if let Some(policy) = state.policies.get(&address) {
            value.ingress_policy = policy.ingress;
            value.egress_policy = policy.egress;
            value.policy_generation = policy.generation;
        }
        if !state.written.contains_key(&address) {
            // An array's element is copied into place while packets pass. Without its address it is
            // nobody's, so none sees a half.
            state.put(&address, &without_address(value))?;
        }
        state.put(&address, &value)?;
        state.written.insert(address, value);
        Ok(())
    }

    /// Removes a pod's interface, with all that was set for its address but that it is a backend's;
    /// succeeds when it is not there.
    pub fn unwire(&self, address: IpAddr) -> Result<(), MapAccessError> {
        let address = Address::from(address);
        let mut state = self.state();
        state.policies.remove(&address);
        let Some(value) = state.written.get(&address).copied() else {
            return Ok(());
        };
        state.put(&address, &without_address(value))?;
        state.put(&address, &WorkloadValue::default())?;
        state.written.remove(&address);
        Ok(())
    }

    /// Says that these addresses are backends of Services, of whichever node. **Call it before they
    /// are in `BACKENDS`**: a pod that is not known to be one is not looked for among the flows.
    pub fn add_backends(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), MapAccessError> {
        let mut state = self.state();
        for address in addresses.into_iter().map(Address::from) {
            if state.backends.insert(address) {
                state.apply_backend(address)?;
            }
        }
        Ok(())
    }

    /// The same, and that no other addresses are. A pod keeps its mark while it has the address,
    /// because its flows may live on; the next pod with the address does not get it.
    pub fn set_backends(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), MapAccessError> {
        let mut state = self.state();
        state.backends = addresses.into_iter().map(Address::from).collect();
        let wired: Vec<Address> = state.written.keys().copied().collect();
        wired
            .into_iter()
            .try_for_each(|address| state.apply_backend(address))
    }

    /// Sets what may come in and go out at an address, now and when a pod is wired with it. Verdicts
    /// stamped with the new generation are by the new rules.
    pub fn set_policy(&self, address: IpAddr, policy: PodPolicy) -> Result<(), MapAccessError> {
        let address = Address::from(address);
        let mut state = self.state();
        state.policies.insert(address, policy);
        state.apply_policy(address)
    }

    /// Sets the flags in `mask` of a wired address to `bits`; false if no pod has the address.
    pub fn set_flags(&self, address: IpAddr, mask: u16, bits: u16) -> Result<bool, MapAccessError> {
        let address = Address::from(address);
        let mut state = self.state();
        let Some(mut value) = state.written.get(&address).copied() else {
            return Ok(false);
        };
        value.flags = value.flags & !mask | bits & mask;
        state.update(value)?;
        Ok(true)
    }

    /// Whether packets to `address` are delivered to that interface.
    #[must_use]
    pub fn contains(&self, address: IpAddr, ifindex: u32) -> bool {
        let state = self.state();
        let value = state.written.get(&Address::from(address));
        value.is_some_and(|value| value.ifindex == ifindex)
    }

    /// What is in the map under an address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<WorkloadValue> {
        self.state().written.get(&Address::from(address)).copied()
    }

    /// Every address that is wired.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let state = self.state();
        state
            .written
            .keys()
            .map(|address| address.to_ip())
            .collect()
    }
}

impl State {
    fn put(&mut self, address: &Address, value: &WorkloadValue) -> Result<(), MapAccessError> {
        let Some(map) = &mut self.map else {
            return Ok(());
        };
        let written = map.set(workload_index(address), value, 0);
        access("write", names::WORKLOADS, written)
    }

    /// Writes a changed value of a wired address.
    fn update(&mut self, value: WorkloadValue) -> Result<(), MapAccessError> {
        if self.written.get(&value.address) == Some(&value) {
            return Ok(());
        }
        self.put(&value.address, &value)?;
        self.written.insert(value.address, value);
        Ok(())
    }

    fn apply_backend(&mut self, address: Address) -> Result<(), MapAccessError> {
        match self.written.get(&address).copied() {
            Some(mut value) if self.backends.contains(&address) => {
                value.flags |= WORKLOAD_BACKEND;
                self.update(value)
            }
            _ => Ok(()),
        }
    }

    fn apply_policy(&mut self, address: Address) -> Result<(), MapAccessError> {
        let Some(policy) = self.policies.get(&address).copied() else {
            return Ok(());
        };
        let Some(mut value) = self.written.get(&address).copied() else {
            return Ok(());
        };
        // The programs read the generation first: one that is new says that the rules are.
        value.ingress_policy = policy.ingress;
        value.egress_policy = policy.egress;
        self.update(value)?;
        value.policy_generation = policy.generation;
        self.update(value)
    }
}

fn without_address(value: WorkloadValue) -> WorkloadValue {
    WorkloadValue {
        address: Address::UNSPECIFIED,
        ..value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));
    const WIRING: Wiring = Wiring {
        ifindex: 7,
        mac: [10, 0, 0, 0, 0, 2],
        netns_cookie: 99,
    };
    const POLICY: PodPolicy = PodPolicy {
        ingress: 3,
        egress: 4,
        generation: 5,
    };

    fn policy_of(value: &WorkloadValue) -> PodPolicy {
        PodPolicy {
            ingress: value.ingress_policy,
            egress: value.egress_policy,
            generation: value.policy_generation,
        }
    }

    #[test]
    fn each_owner_s_fields_survive_the_others_changes() {
        let workloads = Workloads::default();
        workloads.wire(POD, WIRING).unwrap();
        workloads.set_policy(POD, POLICY).unwrap();
        workloads.add_backends([POD]).unwrap();
        assert!(workloads.set_flags(POD, 1 << 9, 1 << 9).unwrap());
        let again = Wiring {
            ifindex: 8,
            ..WIRING
        };
        workloads.wire(POD, again).unwrap();
        let value = workloads.get(POD).unwrap();
        assert_eq!((value.ifindex, value.netns_cookie), (8, 99));
        assert_eq!(value.flags, WORKLOAD_BACKEND | 1 << 9);
        assert_eq!(policy_of(&value), POLICY);
    }

    #[test]
    fn what_is_set_before_a_pod_is_wired_is_there_from_its_first_packet() {
        let workloads = Workloads::default();
        workloads.add_backends([POD]).unwrap();
        workloads.set_policy(POD, POLICY).unwrap();
        assert_eq!(workloads.get(POD), None);
        workloads.wire(POD, WIRING).unwrap();
        let value = workloads.get(POD).unwrap();
        assert_eq!(value.flags, WORKLOAD_BACKEND);
        assert_eq!(policy_of(&value), POLICY);
    }

    #[test]
    fn a_backend_s_mark_lasts_as_long_as_its_lease() {
        let workloads = Workloads::default();
        workloads.wire(POD, WIRING).unwrap();
        workloads.add_backends([POD]).unwrap();
        workloads.set_backends([]).unwrap();
        assert_eq!(workloads.get(POD).unwrap().flags, WORKLOAD_BACKEND);
        workloads.unwire(POD).unwrap();
        assert!(!workloads.contains(POD, 7));
        workloads.wire(POD, WIRING).unwrap();
        assert_eq!(workloads.get(POD).unwrap().flags, 0);
    }

    #[test]
    fn a_pod_s_rules_end_with_its_lease() {
        let workloads = Workloads::default();
        workloads.wire(POD, WIRING).unwrap();
        workloads.set_policy(POD, POLICY).unwrap();
        workloads.unwire(POD).unwrap();
        workloads.wire(POD, WIRING).unwrap();
        assert_eq!(
            policy_of(&workloads.get(POD).unwrap()),
            PodPolicy::default()
        );
    }

    #[test]
    fn flags_of_an_address_nobody_has_are_refused() {
        assert!(!Workloads::default().set_flags(POD, 1, 1).unwrap());
    }
}
