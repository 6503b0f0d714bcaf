//! Which Pod had an address from when to when.
//!
//! Addresses are used again within seconds, while flows are looked up late (idle, or when a partner's half comes). So
//! an address has tenures, and those that ended stay for a time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::object::Pod;
use crate::time::Timestamp;

/// How long an address is still its former Pod's for look-ups of the past.
const KEPT: Duration = Duration::from_secs(5 * 60);

/// A Pod sends before the cluster hears of its address: kubelet's report and the watch take this long at most. Within
/// this time before a tenure the address is that Pod's if it is nobody else's (and the Pod existed).
const REPORT_LAG: Duration = Duration::from_secs(10);

/// One Pod's time with one address; open as long as `until` is none.
#[derive(Debug)]
struct Tenure {
    pod: Arc<Pod>,
    from: Timestamp,
    until: Option<Timestamp>,
}

/// All tenures.
#[derive(Debug)]
pub(super) struct Tenures {
    by_addr: HashMap<IpAddr, Vec<Tenure>, foldhash::fast::RandomState>,
    /// The tenures that ended, in the order they did.
    departed: VecDeque<(Timestamp, IpAddr)>,
    max_departed: usize,
    forgotten: u64,
}

impl Tenures {
    /// None yet; of those that end at most `max_departed` are kept.
    pub(super) fn new(max_departed: usize) -> Self {
        Self { by_addr: HashMap::default(), departed: VecDeque::new(), max_departed, forgotten: 0 }
    }

    /// A Pod that was not known is there: it has had its addresses since it was created, but not while another had
    /// them.
    pub(super) fn begin(&mut self, pod: &Arc<Pod>) {
        for addr in owned(pod) {
            self.open(*addr, pod, pod.created);
        }
    }

    /// A Pod is gone.
    pub(super) fn end(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        for addr in owned(pod) {
            self.close(*addr, pod, now);
        }
    }

    /// A Pod changed, or another of the same name took its place.
    pub(super) fn replace(&mut self, old: &Arc<Pod>, new: &Arc<Pod>, now: Timestamp) {
        if old.uid != new.uid {
            self.end(old, now);
            self.begin(new);
            return;
        }
        for addr in owned(old).iter().filter(|addr| !owned(new).contains(addr)) {
            self.close(*addr, old, now);
        }
        for addr in owned(new) {
            if owned(old).contains(addr) {
                self.update(*addr, old, new);
            } else {
                self.open(*addr, new, now.max(new.created));
            }
        }
    }

    /// Forgets what ended long enough before `now`. True if there was any.
    pub(super) fn expire(&mut self, now: Timestamp) -> bool {
        let before = self.departed.len();
        while let Some(&(until, addr)) = self.departed.front()
            && now.since(until) >= KEPT
        {
            self.departed.pop_front();
            self.forget(addr);
        }
        self.departed.len() < before
    }

    /// The Pod that had `addr` at that time: of the tenures that cover it the one that began last (the end of the one
    /// before may have been heard of late); else the one that began soonest after, within [`REPORT_LAG`].
    pub(super) fn at(&self, addr: IpAddr, at: Timestamp) -> Option<&Arc<Pod>> {
        let tenures = self.by_addr.get(&addr)?;
        let covering = tenures.iter().filter(|tenure| tenure.from <= at && tenure.until.is_none_or(|until| at < until));
        let next = tenures
            .iter()
            .filter(|tenure| tenure.from > at && at >= tenure.from.minus(REPORT_LAG) && at >= tenure.pod.created);
        let found = covering.max_by_key(|tenure| tenure.rank()).or_else(|| next.min_by_key(|tenure| tenure.rank()))?;
        Some(&found.pod)
    }

    /// How many ended tenures are kept.
    pub(super) fn departed(&self) -> usize {
        self.departed.len()
    }

    /// How many ended tenures were forgotten early for want of room.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn open(&mut self, addr: IpAddr, pod: &Arc<Pod>, from: Timestamp) {
        let tenures = self.by_addr.entry(addr).or_default();
        let left = tenures.iter().filter_map(|tenure| tenure.until).max().unwrap_or_default();
        tenures.push(Tenure { pod: pod.clone(), from: from.max(left), until: None });
    }

    fn close(&mut self, addr: IpAddr, pod: &Arc<Pod>, now: Timestamp) {
        let tenures = self.by_addr.get_mut(&addr).into_iter().flatten();
        for tenure in tenures.filter(|tenure| tenure.is_of(pod)) {
            tenure.until = Some(now);
            self.departed.push_back((now, addr));
        }
        while self.departed.len() > self.max_departed {
            if let Some((_, addr)) = self.departed.pop_front() {
                self.forget(addr);
                self.forgotten += 1;
            }
        }
    }

    fn update(&mut self, addr: IpAddr, old: &Arc<Pod>, new: &Arc<Pod>) {
        let tenures = self.by_addr.get_mut(&addr).into_iter().flatten();
        for tenure in tenures.filter(|tenure| tenure.is_of(old)) {
            tenure.pod = new.clone();
        }
    }

    /// Drops the tenure of `addr` that ended first.
    fn forget(&mut self, addr: IpAddr) {
        if let Some(tenures) = self.by_addr.get_mut(&addr) {
            let ended = tenures.iter().enumerate().filter_map(|(place, tenure)| Some((tenure.until?, place)));
            if let Some((_, place)) = ended.min() {
                tenures.remove(place);
            }
            if tenures.is_empty() {
                self.by_addr.remove(&addr);
            }
        }
    }
}

impl Tenure {
    /// Whether this is `pod`'s open tenure.
    fn is_of(&self, pod: &Pod) -> bool {
        self.until.is_none()
            && self.pod.uid == pod.uid
            && self.pod.name == pod.name
            && self.pod.namespace == pod.namespace
    }

    /// By beginning; where that is equal, by what does not depend on the order of arrival.
    fn rank(&self) -> impl Ord + use<'_> {
        (self.from, self.pod.created, &self.pod.namespace, &self.pod.name)
    }
}

fn owned(pod: &Pod) -> &[IpAddr] {
    if pod.owns_addresses() { &pod.addresses } else { &[] }
}
