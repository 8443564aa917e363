//! Envelopes: what travels on a bus, and who may have said it.
//!
//! `{"v":1,"kid":"…","alg":"ed25519","sig":"…","p":"…"}`: `p` is the payload as a JSON string, and exactly its bytes
//! are signed, together with channel and fleet, so that nothing can be moved between fleets or kinds. The algorithm
//! is the key's, whatever `alg` says. What does not fit is counted by reason and changes nothing. The drivers of
//! coordinator and agent close and open; transports carry bytes.

use crate::keys::{ALGORITHM, KeyError, KeyId, KeyPlace, KeysDue, PrivateKey, PublicKey, Ring, Role, Signed, Stamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use unstale_protocol::ids::{AppName, HostName, NameError};

/// The version of the envelope; it changes only where old readers must stop.
const VERSION: u32 = 1;

/// An encoded message.
pub(crate) type Encoded = Arc<[u8]>;

/// The name of a fleet: prefix of everything it has on a bus. Letters, digits, `.`, `_`, `-`; 1 to 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct FleetName(AppName);

impl FleetName {
    /// Returns the fleet of this name.
    ///
    /// # Errors
    /// [`NameError`].
    pub(crate) fn new(name: &str) -> Result<Self, NameError> {
        AppName::new(name).map(Self)
    }
}

impl Default for FleetName {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a constant, and a test reads it")]
        Self::new("default").expect("a name")
    }
}

impl FromStr for FleetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of message an envelope carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The desired state, from the coordinator to all.
    Desired,
    /// A permit, from the coordinator to one host.
    Permit,
    /// A manifest, from the coordinator to all.
    Manifest,
    /// A report or a request, from one host to the coordinator.
    Report,
}

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Permit => "permit",
            Self::Manifest => "manifest",
            Self::Report => "report",
        }
    }

    /// Returns the longest envelope that is looked at, in bytes. A payload grows by a third where it is quoted, at
    /// worst it doubles.
    pub(crate) fn max_bytes(self) -> usize {
        match self {
            Self::Desired => 1 << 20,
            Self::Permit => 16 << 10,
            Self::Manifest => 5 << 19,
            Self::Report => 512 << 10,
        }
    }

    /// Returns the envelope, or where it is too long so much of it that this still shows.
    pub(crate) fn shortened(self, bytes: Encoded) -> Encoded {
        let begin = bytes.get(..=self.max_bytes()).map(Encoded::from);
        begin.unwrap_or(bytes)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope<'a> {
    v: u32,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    sig: Cow<'a, str>,
    #[serde(borrow)]
    p: Cow<'a, str>,
}

/// Why a message changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rejected {
    /// Longer than any message of its kind.
    TooLong,
    /// Not an envelope.
    NotAnEnvelope,
    /// Of a version that this program does not know.
    OtherVersion,
    /// No key of that id is enrolled.
    UnknownKey,
    /// The signature does not fit key, kind, fleet and payload.
    Signature,
    /// The payload makes no sense.
    Payload,
    /// For another host, or in another host's name.
    OtherHost,
    /// A manifest whose digest is not the one that it goes by.
    Digest,
}

impl Rejected {
    /// Returns the reason as logs and answers name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::NotAnEnvelope => "not_an_envelope",
            Self::OtherVersion => "other_version",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Payload => "payload",
            Self::OtherHost => "other_host",
            Self::Digest => "digest",
        }
    }
}

/// What an envelope held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The payload.
    pub(crate) payload: String,
    /// Who said it; `None` where nobody signs.
    pub(crate) by: Option<Role>,
}

/// What an envelope holds before its signature was looked at.
struct Found<'a> {
    payload: String,
    signed: Option<Signed<'a>>,
}

impl Found<'_> {
    fn opened(self) -> Opened {
        Opened { payload: self.payload, by: self.signed.map(|signed| signed.key.role.clone()) }
    }
}

/// Whom one end of a bus believes, and in whose name it speaks.
#[derive(Debug)]
pub(crate) struct Seal {
    fleet: FleetName,
    trust: Trust,
    rejected: BTreeMap<Rejected, u64>,
}

#[derive(Debug)]
enum Trust {
    /// Nobody signs: within one process, or with `--insecure-bus`.
    Anybody,
    /// Boxed: it is much larger.
    Keys(Box<Keys>),
}

#[derive(Debug)]
struct Keys {
    place: KeyPlace,
    role: Role,
    own: PrivateKey,
    coordinators: Ring,
    agents: Ring,
    stamp: Stamp,
}

impl Keys {
    fn read(place: KeyPlace, role: Role) -> Result<Self, KeyError> {
        let stamp = place.stamp(&role);
        let own = place.own(&role)?;
        let mut coordinators = place.read_coordinators()?;
        let mut agents = Ring::default();
        match &role {
            Role::Coordinator => {
                // What an earlier reign wrote on the bus is its own word.
                coordinators.add(own.public());
                agents = place.read_agents()?;
            }
            Role::Agent(_) if coordinators.is_empty() => {
                return Err(KeyError::NobodyEnrolled { path: place.coordinators(), who: "a coordinator" });
            }
            Role::Agent(_) => {}
        }
        Ok(Self { place, role, own, coordinators, agents, stamp })
    }

    fn find(&self, channel: Channel, id: &KeyId) -> Option<&PublicKey> {
        match channel {
            Channel::Desired | Channel::Permit | Channel::Manifest => self.coordinators.find(id),
            Channel::Report => self.agents.find(id),
        }
    }
}

impl Seal {
    /// Signs nothing and believes anybody.
    pub(crate) fn bare(fleet: FleetName) -> Self {
        Self { fleet, trust: Trust::Anybody, rejected: BTreeMap::new() }
    }

    /// Signs with the role's key and believes who is enrolled.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn with_keys(fleet: FleetName, place: KeyPlace, role: Role) -> Result<Self, KeyError> {
        let trust = Trust::Keys(Box::new(Keys::read(place, role)?));
        Ok(Self { fleet, trust, rejected: BTreeMap::new() })
    }

    /// Returns the fleet's name.
    pub(crate) fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// Returns the id of the key that signs; none where nothing is signed.
    pub(crate) fn key(&self) -> Option<KeyId> {
        match &self.trust {
            Trust::Anybody => None,
            Trust::Keys(keys) => Some(keys.own.public().id()),
        }
    }

    /// Returns when [`Self::refresh`] is due.
    pub(crate) fn keys_due(&self) -> KeysDue {
        KeysDue::new(matches!(self.trust, Trust::Keys(_)))
    }

    /// Reads the keys again where their files have changed: what is installed or removed counts without a restart.
    /// What cannot be read leaves everything as it was.
    pub(crate) fn refresh(&mut self) {
        let Trust::Keys(keys) = &mut self.trust else { return };
        let stamp = keys.place.stamp(&keys.role);
        if stamp == keys.stamp {
            return;
        }
        match Keys::read(keys.place.clone(), keys.role.clone()) {
            Ok(new) => {
                tracing::info!(key = %new.own.public().id(), "keys were read again");
                **keys = new;
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::error!(error = format!("{error:#}"), "keys changed and cannot be read: the old ones stay");
                keys.stamp = stamp;
            }
        }
    }

    /// Puts a message into its envelope.
    ///
    /// # Errors
    /// Where it has no JSON form, which no message lacks.
    pub(crate) fn close(&self, channel: Channel, payload: &str) -> Result<Encoded, serde_json::Error> {
        let (kid, alg, sig) = match &self.trust {
            Trust::Anybody => (String::new(), "none", String::new()),
            Trust::Keys(keys) => {
                let signature = keys.own.sign(&self.signed(channel, payload));
                (keys.own.public().id().to_string(), ALGORITHM, BASE64.encode(signature))
            }
        };
        let envelope = Envelope { v: VERSION, kid: kid.into(), alg: alg.into(), sig: sig.into(), p: payload.into() };
        Ok(serde_json::to_vec(&envelope)?.into())
    }

    /// Takes a message out of its envelope, or counts why not.
    ///
    /// # Errors
    /// [`Rejected`].
    pub(crate) fn open(&mut self, channel: Channel, bytes: &[u8]) -> Result<Opened, Rejected> {
        let opened = self.look_into(channel, bytes).and_then(|found| match &found.signed {
            Some(signed) if !signed.holds() => Err(Rejected::Signature),
            _ => Ok(found.opened()),
        });
        self.counted(channel, opened)
    }

    /// Does the same with several messages, in their order. Signatures that are looked at together cost less.
    pub(crate) fn open_all<'a>(
        &mut self,
        channel: Channel,
        envelopes: impl Iterator<Item = &'a Encoded>,
    ) -> Vec<Result<Opened, Rejected>> {
        let found: Vec<_> = envelopes.map(|bytes| self.look_into(channel, bytes)).collect();
        let signed: Vec<&Signed<'_>> = found.iter().flatten().filter_map(|found| found.signed.as_ref()).collect();
        let mut held = Signed::hold(&signed).into_iter();
        let opened: Vec<_> = found
            .into_iter()
            .map(|found| {
                let found = found?;
                let is_refused = found.signed.is_some() && held.next() != Some(true);
                if is_refused { Err(Rejected::Signature) } else { Ok(found.opened()) }
            })
            .collect();
        opened.into_iter().map(|opened| self.counted(channel, opened)).collect()
    }

    fn counted(&mut self, channel: Channel, opened: Result<Opened, Rejected>) -> Result<Opened, Rejected> {
        if let Err(reason) = opened {
            self.reject(channel, reason);
        }
        opened
    }

    /// Reads an envelope; its signature has still to be looked at.
    fn look_into<'a>(&'a self, channel: Channel, bytes: &[u8]) -> Result<Found<'a>, Rejected> {
        if bytes.len() > channel.max_bytes() {
            return Err(Rejected::TooLong);
        }
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|_| Rejected::NotAnEnvelope)?;
        if envelope.v != VERSION {
            return Err(Rejected::OtherVersion);
        }
        let signed = match &self.trust {
            Trust::Anybody => None,
            Trust::Keys(keys) => {
                let id = envelope.kid.parse().map_err(|_| Rejected::UnknownKey)?;
                let key = keys.find(channel, &id).ok_or(Rejected::UnknownKey)?;
                let signature = BASE64.decode(envelope.sig.as_bytes()).map_err(|_| Rejected::Signature)?;
                let signature = signature.try_into().map_err(|_| Rejected::Signature)?;
                Some(Signed { key, message: self.signed(channel, &envelope.p), signature })
            }
        };
        Ok(Found { payload: envelope.p.into_owned(), signed })
    }

    /// Takes a report's payload; only the host itself may have said it.
    ///
    /// # Errors
    /// [`Rejected::OtherHost`], counted.
    pub(crate) fn check_speaker(&mut self, by: Option<&Role>, host: &HostName) -> Result<(), Rejected> {
        match by {
            Some(Role::Agent(name)) if name == host => Ok(()),
            None => Ok(()),
            Some(_) => {
                self.reject(Channel::Report, Rejected::OtherHost);
                Err(Rejected::OtherHost)
            }
        }
    }

    /// Counts a message that changes nothing. A line is logged for the first of a kind, and then ever more seldom.
    pub(crate) fn reject(&mut self, channel: Channel, reason: Rejected) {
        let count = self.rejected.entry(reason).or_default();
        *count = count.saturating_add(1);
        if count.is_power_of_two() {
            let (channel, reason) = (channel.name(), reason.word());
            tracing::warn!(channel, reason, count = *count, "message changes nothing");
        }
    }

    /// Returns how many messages changed nothing, by reason.
    pub(crate) fn rejected(&self) -> BTreeMap<String, u64> {
        self.rejected.iter().map(|(reason, count)| (reason.word().to_owned(), *count)).collect()
    }

    /// Returns what is signed. Neither a channel nor a fleet has a `/` or a zero byte in its name.
    fn signed(&self, channel: Channel, payload: &str) -> Vec<u8> {
        format!("unstale/v1/{}/{}\0{payload}", channel.name(), self.fleet).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Surroundings;

    fn fleet(name: &str) -> FleetName {
        FleetName::new(name).unwrap()
    }

    fn web(number: u32) -> HostName {
        HostName::new(format!("web-{number}")).unwrap()
    }

    /// A coordinator and the agents of two hosts that know each other.
    struct Fleet {
        _directory: tempfile::TempDir,
        coordinator: Seal,
        first: Seal,
        second: Seal,
        places: Vec<KeyPlace>,
    }

    fn place(path: &std::path::Path) -> KeyPlace {
        KeyPlace::choose(Some(path), &Surroundings::default()).unwrap()
    }

    fn enrolled() -> Fleet {
        let directory = tempfile::tempdir().unwrap();
        let places: Vec<KeyPlace> = ["c", "1", "2"].map(|name| place(&directory.path().join(name))).to_vec();
        let (key, _) = places[0].make(&Role::Coordinator).unwrap();
        for (place, number) in places[1..].iter().zip(1..) {
            let (agent, _) = place.make(&Role::Agent(web(number))).unwrap();
            places[0].enrol(&agent).unwrap();
            place.enrol(&key).unwrap();
        }
        let seal = |index: usize, role| Seal::with_keys(fleet("default"), places[index].clone(), role).unwrap();
        Fleet {
            coordinator: seal(0, Role::Coordinator),
            first: seal(1, Role::Agent(web(1))),
            second: seal(2, Role::Agent(web(2))),
            places,
            _directory: directory,
        }
    }

    #[test]
    fn what_one_closes_the_other_opens() {
        let mut fleet = enrolled();
        let payload = "{\"epoch\":1,\"text\":\"a \\\" b \u{1f40d}\"}";
        for channel in [Channel::Desired, Channel::Permit, Channel::Manifest] {
            let bytes = fleet.coordinator.close(channel, payload).unwrap();
            let opened = fleet.first.open(channel, &bytes).unwrap();
            assert_eq!((opened.payload.as_str(), opened.by), (payload, Some(Role::Coordinator)));
            assert!(fleet.coordinator.open(channel, &bytes).is_ok(), "a standby reads what the leader wrote");
        }
        let bytes = fleet.first.close(Channel::Report, payload).unwrap();
        let opened = fleet.coordinator.open(Channel::Report, &bytes).unwrap();
        assert_eq!(opened.by, Some(Role::Agent(web(1))));
        assert!(fleet.coordinator.check_speaker(opened.by.as_ref(), &web(1)).is_ok());
        assert_eq!(fleet.coordinator.check_speaker(opened.by.as_ref(), &web(2)), Err(Rejected::OtherHost));
        assert_eq!(fleet.coordinator.rejected(), BTreeMap::from([("other_host".to_owned(), 1)]));
        assert!(fleet.first.rejected().is_empty());
    }

    #[test]
    fn nothing_that_was_changed_moved_or_made_up_is_opened() {
        let mut set = enrolled();
        let desired = set.coordinator.close(Channel::Desired, "{}").unwrap();
        let text = String::from_utf8(desired.to_vec()).unwrap();
        let mut check = |channel, text: &str, reason| {
            assert_eq!(set.first.open(channel, text.as_bytes()), Err(reason), "{text}");
        };
        check(Channel::Permit, &text, Rejected::Signature);
        check(Channel::Desired, &text.replace("{}", "{ }"), Rejected::Signature);
        check(Channel::Desired, &text.replace("\"sig\":\"", "\"sig\":\"AAAA"), Rejected::Signature);
        check(Channel::Desired, &text.replace("\"v\":1", "\"v\":2"), Rejected::OtherVersion);
        check(Channel::Desired, &text.replacen("\"kid\":\"", "\"kid\":\"0", 1), Rejected::UnknownKey);
        check(Channel::Desired, &text[..text.len() - 1], Rejected::NotAnEnvelope);
        check(Channel::Desired, &text.replacen("\"v\":1", "\"v\":1,\"p\":\"x\"", 1), Rejected::NotAnEnvelope);
        check(Channel::Desired, &" ".repeat(Channel::Desired.max_bytes() + 1), Rejected::TooLong);
        let bare = Seal::bare(fleet("default")).close(Channel::Desired, "{}").unwrap();
        check(Channel::Desired, std::str::from_utf8(&bare).unwrap(), Rejected::UnknownKey);
        // An agent's key is no coordinator's.
        let of_agent = set.second.close(Channel::Desired, "{}").unwrap();
        check(Channel::Desired, std::str::from_utf8(&of_agent).unwrap(), Rejected::UnknownKey);
        // The same coordinator, another fleet.
        let other = Seal::with_keys(fleet("other"), set.places[0].clone(), Role::Coordinator).unwrap();
        let of_other = other.close(Channel::Desired, "{}").unwrap();
        check(Channel::Desired, std::str::from_utf8(&of_other).unwrap(), Rejected::Signature);
        assert_eq!(set.first.rejected().values().sum::<u64>(), 11);
    }

    #[test]
    fn among_many_each_is_opened_for_itself() {
        let mut set = enrolled();
        let reports: Vec<Encoded> = (0..8)
            .map(|number| {
                let seal = if number % 2 == 0 { &set.first } else { &set.second };
                seal.close(Channel::Report, &format!("{{\"number\":{number}}}")).unwrap()
            })
            .collect();
        let forged = |bytes: &Encoded| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            Encoded::from(text.replace("number", "member").into_bytes())
        };
        let noise = Encoded::from(&b"noise"[..]);
        let mut all = reports.clone();
        assert_eq!(opened(&mut set.coordinator, &all), vec!["1", "2", "1", "2", "1", "2", "1", "2"]);
        (all[2], all[5]) = (forged(&reports[2]), noise);
        let want = ["1", "2", "signature", "2", "1", "not_an_envelope", "1", "2"];
        assert_eq!(opened(&mut set.coordinator, &all), want);
        // What one has signed is not what another has.
        all = reports[..4].iter().map(forged).collect();
        assert_eq!(opened(&mut set.coordinator, &all), ["signature"; 4]);
        assert_eq!(set.coordinator.rejected()["signature"], 5);
        let mut bare = Seal::bare(fleet("default"));
        assert!(bare.open_all(Channel::Report, all.iter()).iter().all(Result::is_ok));
    }

    /// Who has said each, or why nobody has.
    fn opened(seal: &mut Seal, envelopes: &[Encoded]) -> Vec<String> {
        let opened = seal.open_all(Channel::Report, envelopes.iter());
        let word = |opened: Result<Opened, Rejected>| match opened {
            Ok(opened) => opened.by.unwrap().to_string().rsplit('-').next().unwrap().to_owned(),
            Err(reason) => reason.word().to_owned(),
        };
        opened.into_iter().map(word).collect()
    }

    #[test]
    fn the_algorithm_is_the_keys_whatever_the_envelope_says() {
        let mut set = enrolled();
        let desired = set.coordinator.close(Channel::Desired, "{}").unwrap();
        let text = String::from_utf8(desired.to_vec()).unwrap().replace("ed25519", "none");
        assert!(set.first.open(Channel::Desired, text.as_bytes()).is_ok());
        let unsigned = text.replacen("\"sig\":\"", "\"sig\":\"\",\"was\":\"", 1);
        assert_eq!(set.first.open(Channel::Desired, unsigned.as_bytes()), Err(Rejected::Signature));
    }

    #[test]
    fn keys_that_are_installed_or_removed_count_without_a_restart() {
        let mut set = enrolled();
        let (new, _) = set.places[0].make(&Role::Coordinator).unwrap();
        let old = set.coordinator.key().unwrap();
        set.places[1].enrol(&new).unwrap();
        set.places[0].put_to_use(&new.id()).unwrap();
        set.coordinator.refresh();
        set.first.refresh();
        assert_eq!(set.coordinator.key(), Some(new.id()));
        let bytes = set.coordinator.close(Channel::Desired, "{}").unwrap();
        assert!(set.first.open(Channel::Desired, &bytes).is_ok());
        assert!(set.second.open(Channel::Desired, &bytes).is_err(), "it was not installed there");
        set.places[1].remove(&new.id()).unwrap();
        set.first.refresh();
        assert!(set.first.open(Channel::Desired, &bytes).is_err());
        // What cannot be read leaves the old keys in force.
        std::fs::write(set.places[1].coordinators(), "song").unwrap();
        set.first.refresh();
        assert_ne!(set.first.key(), Some(old));
    }

    #[test]
    fn an_agent_that_knows_no_coordinator_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory.path().join("keys"));
        place.make(&Role::Agent(web(1))).unwrap();
        let refused = Seal::with_keys(fleet("default"), place, Role::Agent(web(1))).unwrap_err();
        assert!(matches!(refused, KeyError::NobodyEnrolled { .. }));
    }

    #[test]
    fn without_keys_everything_is_believed_that_is_an_envelope() {
        let mut bare = Seal::bare(fleet("default"));
        let bytes = bare.close(Channel::Report, "{}").unwrap();
        assert_eq!(bare.open(Channel::Report, &bytes).unwrap(), Opened { payload: "{}".into(), by: None });
        assert!(bare.open(Channel::Report, b"{}").is_err());
    }
}
