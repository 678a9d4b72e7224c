use std::collections::{BTreeMap, VecDeque};

use waybill_domain::ProjectId;

use super::Key;

/// Keys that were in a batch the sink refused while it took others, by project.
///
/// They are delivered apart from the rest, in ever smaller groups, until those at fault are
/// alone. As long as a project is here, its other keys wait here too: so each batch of a
/// project that fails costs that project its time, and no other.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    projects: BTreeMap<ProjectId, Ward>,
    /// The project that was served last.
    last: Option<ProjectId>,
    len: usize,
}

#[derive(Debug, Default)]
struct Ward {
    /// To be delivered as they are.
    groups: VecDeque<Vec<Key>>,
    /// Came since, and never failed.
    fresh: VecDeque<Key>,
    /// Whose turn it is, so that neither keeps the other waiting.
    fresh_next: bool,
}

impl Quarantine {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn holds(&self, project: ProjectId) -> bool {
        self.projects.contains_key(&project)
    }

    /// Adds keys that are delivered together, and with no others.
    pub(super) fn push_group(&mut self, project: ProjectId, keys: Vec<Key>) {
        if !keys.is_empty() {
            self.len += keys.len();
            self.projects.entry(project).or_default().groups.push_back(keys);
        }
    }

    /// Adds a key that never failed, of a project that is here.
    pub(super) fn push_fresh(&mut self, project: ProjectId, key: Key) {
        self.len += 1;
        self.projects.entry(project).or_default().fresh.push_back(key);
    }

    /// Takes what is delivered next: a group, or up to `most` fresh keys. Projects take turns.
    pub(super) fn pop(&mut self, most: usize) -> Option<Vec<Key>> {
        let after = |last: ProjectId| (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
        let next = self.last.and_then(|last| self.projects.range(after(last)).next());
        let project = *next.or_else(|| self.projects.iter().next())?.0;
        self.last = Some(project);
        let ward = self.projects.get_mut(&project)?;
        let takes_fresh = ward.groups.is_empty() || (ward.fresh_next && !ward.fresh.is_empty());
        ward.fresh_next = !takes_fresh;
        let keys = if takes_fresh {
            ward.fresh.drain(..most.min(ward.fresh.len())).collect()
        } else {
            ward.groups.pop_front().unwrap_or_default()
        };
        if ward.groups.is_empty() && ward.fresh.is_empty() {
            self.projects.remove(&project);
        }
        self.len -= keys.len();
        Some(keys)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        for ward in self.projects.values_mut() {
            ward.fresh.retain(&keep);
            for group in &mut ward.groups {
                group.retain(&keep);
            }
            ward.groups.retain(|group| !group.is_empty());
        }
        self.projects.retain(|_, ward| !ward.groups.is_empty() || !ward.fresh.is_empty());
        let wards = self.projects.values();
        self.len = wards.map(|ward| ward.fresh.len() + ward.groups.iter().map(Vec::len).sum::<usize>()).sum();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use waybill_domain::Kind;

    use super::*;

    fn key(n: u8) -> Key {
        Key { kind: Kind::Chunk, id: Uuid::from_bytes([n; 16]) }
    }

    fn project(n: u8) -> ProjectId {
        ProjectId::from_uuid(Uuid::from_bytes([n; 16]))
    }

    #[test]
    fn projects_take_turns_and_so_do_old_and_new_keys() {
        let mut quarantine = Quarantine::default();
        quarantine.push_group(project(1), vec![key(1), key(2)]);
        quarantine.push_group(project(1), vec![key(3)]);
        quarantine.push_group(project(2), vec![key(4)]);
        quarantine.push_fresh(project(1), key(5));
        quarantine.push_fresh(project(1), key(6));
        assert_eq!(quarantine.len(), 6);
        let order: Vec<_> = std::iter::from_fn(|| quarantine.pop(8)).collect();
        assert_eq!(order, [vec![key(1), key(2)], vec![key(4)], vec![key(5), key(6)], vec![key(3)]]);
        assert!(!quarantine.holds(project(1)));
        assert_eq!(quarantine.len(), 0);
    }

    #[test]
    fn what_is_dropped_is_dropped_everywhere() {
        let mut quarantine = Quarantine::default();
        quarantine.push_group(project(1), vec![key(1), key(2)]);
        quarantine.push_fresh(project(1), key(3));
        quarantine.retain(|k| *k == key(2));
        assert_eq!((quarantine.len(), quarantine.pop(8)), (1, Some(vec![key(2)])));
        assert_eq!(quarantine.pop(8), None);
    }
}
