//! Compiles policies, namespaces and pods into what each pod of this node allows.
//!
//! Everything is kept by what depends on it, so a change costs what it changes: a pod of the cluster
//! touches the groups of peers it is in, and in their contents its own addresses; a policy touches the
//! pods of this node in its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::content::{Content, ContentKey, Entries, Sources, names_of};
use super::groups::{Group, GroupId, GroupKey, Pods, in_namespace, is_member};
use super::{
    Direction, Labels, NamedPort, Namespaces, NetworkPolicy, ObjectName, Pod, PodPeers, host,
};

/// Stands for what is allowed in one direction of some pods of this node.
pub type ContentId = u32;

/// What a pod of this node allows: `None` is everything, for it is not isolated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// What may come in.
    pub ingress: Option<ContentId>,
    /// What may go out.
    pub egress: Option<ContentId>,
}

impl Isolation {
    fn get_mut(&mut self, direction: Direction) -> &mut Option<ContentId> {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its addresses, from whoever gave them to it.
    pub addresses: Vec<IpAddr>,
    /// What is compiled for it; `None` while its labels are not known and there are policies in its
    /// namespace, which may select it.
    pub isolation: Option<Isolation>,
}

/// What is different since the last time somebody asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Contents and the prefixes in them. A content that is gone is no longer in the table.
    pub contents: BTreeMap<ContentId, BTreeSet<IpNet>>,
    /// Pods of this node whose addresses or contents changed; gone ones are no longer in the table.
    pub subjects: BTreeSet<ObjectName>,
}

/// The compiler and all it knows.
#[derive(Debug, Default)]
pub struct PolicyTable {
    policies: BTreeMap<ObjectName, Arc<NetworkPolicy>>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    pods: Pods,
    subjects: BTreeMap<ObjectName, Subject>,
    groups: BTreeMap<GroupId, Group>,
    group_ids: BTreeMap<GroupKey, GroupId>,
    /// Groups that pods of a namespace can be in.
    groups_of: BTreeMap<Arc<str>, BTreeSet<GroupId>>,
    contents: BTreeMap<ContentId, Content>,
    /// The groups each content looks at.
    content_groups: BTreeMap<ContentId, BTreeSet<GroupId>>,
    content_keys: BTreeMap<ContentId, ContentKey>,
    content_ids: BTreeMap<ContentKey, ContentId>,
    next_id: u32,
    changes: Changes,
}

impl PolicyTable {
    /// Takes what has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The pods of this node.
    #[must_use]
    pub fn subjects(&self) -> &BTreeMap<ObjectName, Subject> {
        &self.subjects
    }

    /// The prefixes of a content with the ports that peers there may use. The longest prefix decides.
    #[must_use]
    pub fn content(&self, id: ContentId) -> Option<&BTreeMap<IpNet, super::PortSet>> {
        self.contents.get(&id).map(|content| &content.entries)
    }

    /// Every content.
    pub fn content_ids(&self) -> impl Iterator<Item = ContentId> + '_ {
        self.contents.keys().copied()
    }

    /// The policies a content is made of, and its direction.
    #[must_use]
    pub fn origin(&self, id: ContentId) -> Option<(Direction, &BTreeSet<ObjectName>)> {
        let key = self.content_keys.get(&id)?;
        Some((key.direction, &key.policies))
    }

    /// The pods of this node that have a content.
    pub fn users(&self, id: ContentId) -> impl Iterator<Item = &ObjectName> {
        self.contents
            .get(&id)
            .into_iter()
            .flat_map(|content| &content.users)
    }

    /// Every policy.
    #[must_use]
    pub fn policies(&self) -> &BTreeMap<ObjectName, Arc<NetworkPolicy>> {
        &self.policies
    }

    /// Every pod of the cluster that is known.
    pub fn pod_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.pods.by_name.keys()
    }

    /// Every namespace that is known.
    pub fn namespace_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.keys()
    }

    /// A policy is new, different, or gone.
    pub fn set_policy(&mut self, name: &ObjectName, policy: Option<Arc<NetworkPolicy>>) {
        let old = match &policy {
            Some(policy) => self.policies.insert(name.clone(), policy.clone()),
            None => self.policies.remove(name),
        };
        if old == policy {
            return;
        }
        // Contents that are made of it and stay in use are compiled anew under the same id.
        let affected: Vec<ContentId> = self
            .content_keys
            .iter()
            .filter(|(_, key)| key.policies.contains(name))
            .map(|(id, _)| *id)
            .collect();
        let subjects: Vec<_> = in_namespace(&self.subjects, &name.namespace)
            .map(|(name, _)| name.clone())
            .collect();
        for subject in subjects {
            self.select(&subject);
        }
        for id in affected {
            self.recompile(id);
        }
    }

    /// A namespace is new, has other labels, or is gone.
    pub fn set_namespace(&mut self, name: &Arc<str>, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        let before = self.groups_of.remove(name).unwrap_or_default();
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(name),
        };
        let after: BTreeSet<GroupId> = self
            .groups
            .iter()
            .filter(|(_, group)| self.reaches(&group.key, name))
            .map(|(id, _)| *id)
            .collect();
        let pods = self.pods.of_namespace(name);
        let pods: Vec<Arc<Pod>> = pods.map(|(_, pod)| pod.clone()).collect();
        if self.namespaces.contains_key(name) || !pods.is_empty() {
            self.groups_of.insert(name.clone(), after.clone());
        }
        for id in before.symmetric_difference(&after) {
            let joins = after.contains(id);
            for pod in &pods {
                self.move_pod(*id, (!joins).then_some(pod), joins.then_some(pod));
            }
        }
    }

    /// A pod of the cluster is new, different, or gone.
    pub fn set_pod(&mut self, name: &ObjectName, pod: Option<Arc<Pod>>) {
        if self.pods.by_name.get(name) == pod.as_ref() {
            return;
        }
        let old = self.pods.replace(name, pod.as_ref());
        // A namespace whose labels were never seen has pods all the same.
        for id in self.groups_at(&name.namespace) {
            self.move_pod(id, old.as_ref(), pod.as_ref());
        }
        if self.subjects.contains_key(name) {
            self.select(name);
        }
    }

    /// A pod of this node has got addresses, or is gone.
    pub fn set_subject(&mut self, name: &ObjectName, addresses: Option<Vec<IpAddr>>) {
        match addresses {
            Some(addresses) => {
                let subject = self.subjects.entry(name.clone()).or_default();
                if subject.addresses != addresses {
                    subject.addresses = addresses;
                    self.changes.subjects.insert(name.clone());
                }
                self.select(name);
            }
            None => {
                self.leave(name, None);
                if self.subjects.remove(name).is_some() {
                    self.changes.subjects.insert(name.clone());
                }
            }
        }
    }

    /// Finds out which policies select a pod of this node.
    fn select(&mut self, name: &ObjectName) {
        let Some(pod) = self.pods.by_name.get(name).cloned() else {
            // Where there is no policy, nobody needs to know its labels.
            let has_policies = in_namespace(&self.policies, &name.namespace)
                .next()
                .is_some();
            self.leave(name, (!has_policies).then(Isolation::default));
            return;
        };
        let mut isolation = Isolation::default();
        for direction in Direction::ALL {
            let Some(key) = self.key_for(&name.namespace, &pod, direction) else {
                continue;
            };
            *isolation.get_mut(direction) = Some(self.ensure_content(key));
        }
        self.leave(name, Some(isolation));
    }

    /// What selects a pod in one direction; `None` if nothing does.
    fn key_for(&self, namespace: &str, pod: &Pod, direction: Direction) -> Option<ContentKey> {
        let mut policies = BTreeSet::new();
        let mut own_ports = BTreeSet::<NamedPort>::new();
        for (name, policy) in in_namespace(&self.policies, namespace) {
            if policy.rules(direction).is_none() || !policy.pods.matches(&pod.labels) {
                continue;
            }
            policies.insert(name.clone());
            if direction == Direction::Ingress {
                let names = names_of(policy, direction);
                let own = pod.named_ports.iter();
                own_ports.extend(own.filter(|own| names.contains(&own.name)).cloned());
            }
        }
        (!policies.is_empty()).then_some(ContentKey {
            direction,
            policies,
            own_ports,
        })
    }

    /// Moves a pod of this node from what it had to `next`; contents nobody has are dropped.
    fn leave(&mut self, name: &ObjectName, next: Option<Isolation>) {
        let Some(subject) = self.subjects.get_mut(name) else {
            return;
        };
        let before = std::mem::replace(&mut subject.isolation, next);
        if before != next {
            self.changes.subjects.insert(name.clone());
        }
        let ids = |isolation: Option<Isolation>| {
            let isolation = isolation.unwrap_or_default();
            [isolation.ingress, isolation.egress].into_iter().flatten()
        };
        for id in ids(next) {
            if let Some(content) = self.contents.get_mut(&id) {
                content.users.insert(name.clone());
            }
        }
        for id in ids(before) {
            if ids(next).any(|kept| kept == id) {
                continue;
            }
            let Some(content) = self.contents.get_mut(&id) else {
                continue;
            };
            content.users.remove(name);
            if content.users.is_empty() {
                self.drop_content(id);
            }
        }
    }

    fn ensure_content(&mut self, key: ContentKey) -> ContentId {
        if let Some(id) = self.content_ids.get(&key) {
            return *id;
        }
        let id = self.fresh_id();
        self.content_ids.insert(key.clone(), id);
        self.content_keys.insert(id, key);
        self.compile(id, &Entries::new());
        id
    }

    /// Compiles a content whose policies have changed. It may be gone by now.
    fn recompile(&mut self, id: ContentId) {
        let Some(old) = self.contents.remove(&id) else {
            return;
        };
        let groups = self.content_groups.remove(&id).unwrap_or_default();
        self.compile(id, &old.entries);
        if let Some(content) = self.contents.get_mut(&id) {
            content.users = old.users;
        }
        self.drop_groups(id, &groups);
    }

    fn compile(&mut self, id: ContentId, before: &Entries) {
        let key = self.content_keys[&id].clone();
        let policies: Vec<Arc<NetworkPolicy>> = key
            .policies
            .iter()
            .filter_map(|name| self.policies.get(name).cloned())
            .collect();
        let mut groups = BTreeSet::new();
        let mut content = Content::new(&key, policies.iter().map(Arc::as_ref), |key| {
            let group = self.ensure_group(key);
            groups.insert(group);
            group
        });
        let sources = Sources {
            groups: &self.groups,
            pods: &self.pods,
        };
        content.fill(&groups, &sources);
        let now = &content.entries;
        let known = before.keys().chain(now.keys());
        let different = known.filter(|prefix| before.get(prefix) != now.get(prefix));
        let changed = self.changes.contents.entry(id).or_default();
        changed.extend(different.copied());
        for group in &groups {
            if let Some(group) = self.groups.get_mut(group) {
                group.contents.insert(id);
            }
        }
        self.contents.insert(id, content);
        self.content_groups.insert(id, groups);
    }

    fn drop_content(&mut self, id: ContentId) {
        self.contents.remove(&id);
        if let Some(key) = self.content_keys.remove(&id) {
            self.content_ids.remove(&key);
        }
        let groups = self.content_groups.remove(&id).unwrap_or_default();
        self.drop_groups(id, &groups);
        self.changes.contents.insert(id, BTreeSet::new());
    }

    /// A content no longer looks at some groups; those nobody looks at are dropped.
    fn drop_groups(&mut self, content: ContentId, groups: &BTreeSet<GroupId>) {
        let kept = self.content_groups.get(&content);
        for id in groups {
            if kept.is_some_and(|kept| kept.contains(id)) {
                continue;
            }
            let Some(group) = self.groups.get_mut(id) else {
                continue;
            };
            group.contents.remove(&content);
            if group.contents.is_empty() {
                self.group_ids.remove(&group.key);
                self.groups.remove(id);
                for groups in self.groups_of.values_mut() {
                    groups.remove(id);
                }
            }
        }
    }

    fn ensure_group(&mut self, key: GroupKey) -> GroupId {
        if let Some(id) = self.group_ids.get(&key) {
            return *id;
        }
        let id = self.fresh_id();
        let mut group = Group::new(key.clone());
        let known = self.namespaces.keys().chain(self.groups_of.keys());
        let reached: BTreeSet<Arc<str>> = known
            .filter(|namespace| self.reaches(&key, namespace))
            .cloned()
            .collect();
        let only = match &key {
            GroupKey::Peers(PodPeers {
                namespaces: Namespaces::Only(only),
                ..
            }) => Some(only.clone()),
            _ => None,
        };
        for namespace in reached.into_iter().chain(only) {
            let groups = self.groups_of.entry(namespace.clone()).or_default();
            if groups.insert(id) {
                for (_, pod) in self.pods.of_namespace(&namespace) {
                    if is_member(&key, pod) {
                        group.add(pod);
                    }
                }
            }
        }
        self.group_ids.insert(key, id);
        self.groups.insert(id, group);
        id
    }

    /// Groups that pods of a namespace can be in, also when nothing else is known of it.
    fn groups_at(&mut self, namespace: &Arc<str>) -> BTreeSet<GroupId> {
        if let Some(groups) = self.groups_of.get(namespace) {
            return groups.clone();
        }
        let reached = self
            .groups
            .iter()
            .filter(|(_, group)| self.reaches(&group.key, namespace));
        let groups: BTreeSet<GroupId> = reached.map(|(id, _)| *id).collect();
        self.groups_of.insert(namespace.clone(), groups.clone());
        groups
    }

    /// Whether pods of a namespace can be in a group. One that is not known has no labels that match.
    fn reaches(&self, key: &GroupKey, namespace: &Arc<str>) -> bool {
        match key {
            GroupKey::Named(_) => true,
            GroupKey::Peers(peers) => match &peers.namespaces {
                Namespaces::Only(only) => only == namespace,
                Namespaces::Matching(selector) => self
                    .namespaces
                    .get(namespace)
                    .is_some_and(|labels| selector.matches(labels)),
            },
        }
    }

    /// A pod changes in, joins or leaves a group, as its labels say.
    fn move_pod(&mut self, id: GroupId, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let old = old.filter(|pod| is_member(&group.key, pod));
        let new = new.filter(|pod| is_member(&group.key, pod));
        if let Some(pod) = new {
            group.add(pod);
        }
        if let Some(pod) = old {
            group.remove(pod);
        }
        let touched: BTreeSet<IpAddr> = old
            .into_iter()
            .chain(new)
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        let same = old.is_some() && old.map(|p| &p.addresses) == new.map(|p| &p.addresses);
        let same_ports = old.map(|p| &p.named_ports) == new.map(|p| &p.named_ports);
        if touched.is_empty() || same && same_ports {
            return;
        }
        let sources = Sources {
            groups: &self.groups,
            pods: &self.pods,
        };
        for content_id in &sources.groups[&id].contents {
            let (Some(content), Some(groups)) = (
                self.contents.get_mut(content_id),
                self.content_groups.get(content_id),
            ) else {
                continue;
            };
            for address in &touched {
                if content.refresh(*address, groups, &sources) {
                    let changed = self.changes.contents.entry(*content_id).or_default();
                    changed.insert(host(*address));
                }
            }
        }
    }

    fn fresh_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }
}
