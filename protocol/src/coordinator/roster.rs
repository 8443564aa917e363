//! The list of hosts, and whether it is all there are.
//!
//! Units of a host that nobody here knows count in no budget. A disk that is new, or that was lost, therefore grants
//! nothing until its list can be trusted.

use super::{Action, Coordinator, Host, Refused, Standing};
use crate::ids::HostName;
use crate::time::Moment;

impl Coordinator {
    /// Returns how many hosts are expected, as others are told.
    pub(super) fn expected_count(&self) -> u32 {
        u32::try_from(self.expected().count()).unwrap_or(u32::MAX)
    }

    /// Returns the hosts that left while this machine listened: whoever told a count may not have known it then.
    fn gone(&self) -> impl Iterator<Item = &HostName> {
        let configured = &self.policy.expected_hosts;
        let gone = move |(name, host): &(&HostName, &Host)| {
            host.record.left && host.has_spoken() && !configured.contains(*name)
        };
        self.hosts.iter().filter(gone).map(|(name, _)| name)
    }

    fn known_count(&self) -> u32 {
        self.expected_count().saturating_add(count(self.gone()))
    }

    /// Returns how many hosts must have been heard, those that have left among them: nobody counted those that had left
    /// by then, but one of them that is back was counted.
    fn wanted_count(&self) -> Option<u32> {
        let uncounted = self.gone().filter(|name| self.left_when_stated.contains(*name));
        Some(self.stated_hosts?.saturating_add(count(uncounted)))
    }

    /// Stops all grants where there are hosts that are not known here: none before they are heard, or before an
    /// operator has said how many there are.
    pub(super) fn doubt_hosts(&mut self, unknown_reign: bool) {
        // A count that is older than what was desired last says little.
        match self.hosts_elsewhere.filter(|_| !unknown_reign) {
            Some(hosts) if self.known_count() < hosts => {
                self.lost_hosts = true;
                self.stated_hosts = Some(self.wanted_count().map_or(hosts, |stated| stated.max(hosts)));
                self.left_when_stated.clear();
            }
            Some(hosts) => self.knew_hosts |= hosts > 0,
            None => {
                let is_told_elsewhere = unknown_reign || self.has_adopted || self.partial;
                self.lost_hosts |= is_told_elsewhere && !self.knew_hosts && self.policy.expected_hosts.is_empty();
            }
        }
    }

    /// Compares the list with what whoever leads says of its length. Whoever stands by may be started again and find
    /// no such word any more: then its disk must tell whether the hosts on it are all.
    pub(super) fn compare_hosts(&mut self, told: Option<u32>) {
        self.hosts_elsewhere = told;
        if let Some(hosts) = told.filter(|hosts| *hosts > 0) {
            self.knew_hosts = self.known_count() >= hosts;
            self.keep_whether_all(self.knew_hosts);
        }
    }

    /// A life that began with no list has one for the next once it has led for as long as each host needs to speak.
    pub(super) fn trust_hosts(&mut self, now: Moment) {
        let leads = self.standing != Standing::Standby;
        if leads && !self.lost_hosts && !self.hosts.is_empty() && now >= self.partial_end() {
            self.keep_whether_all(true);
        }
    }

    fn keep_whether_all(&mut self, all: bool) {
        if self.all_hosts != all {
            self.all_hosts = all;
            self.actions.push_back(Action::Store(vec![self.reign_record()]));
        }
    }

    /// The list of hosts is whole again once as many have been heard as an operator has stated.
    pub(super) fn find_hosts(&mut self) {
        if self.lost_hosts && self.wanted_count().is_some_and(|hosts| self.heard() >= hosts) {
            (self.lost_hosts, self.all_hosts) = (false, true);
            self.actions.push_back(Action::Store(vec![self.reign_record()]));
        }
    }

    fn heard(&self) -> u32 {
        count(self.hosts.values().filter(|host| host.has_spoken()))
    }

    /// Says how many hosts the fleet has, after the list of them was lost.
    ///
    /// # Errors
    /// [`Refused::NotLeader`].
    pub fn handle_stated_hosts(&mut self, hosts: u32, now: Moment) -> Result<(), Refused> {
        self.must_lead(now)?;
        self.left_when_stated = self.gone().cloned().collect();
        self.stated_hosts = Some(hosts);
        self.find_hosts();
        self.complete(now);
        self.review(now);
        Ok(())
    }

    /// Tells whether grants wait for an operator to say how many hosts there are.
    pub fn has_lost_hosts(&self) -> bool {
        self.lost_hosts && self.stated_hosts.is_none()
    }
}

fn count(hosts: impl Iterator) -> u32 {
    u32::try_from(hosts.count()).unwrap_or(u32::MAX)
}
