//! Whom a leader asks for what it lacks, and what of the answers counts.

use super::super::{Broadcast, CoordinatorPolicy, Leadership, Lease, Terms};
use super::*;
use crate::fingerprint::Salt;
use crate::ids::Incarnation;
use crate::message::AppReport;
use crate::piece::PIECE_MAX_BYTES;

fn host(number: u32) -> HostName {
    HostName::new(format!("web-{number}")).unwrap()
}

fn shop() -> AppName {
    AppName::new("shop").unwrap()
}

fn digest(text: &str) -> Fingerprint {
    Fingerprint::of_bytes(text.as_bytes())
}

/// A leader that has announced the manifest `text`, and was not told what it holds.
fn leader(text: &str) -> Coordinator {
    let mut machine = Coordinator::new(CoordinatorPolicy::default(), Vec::new(), Moment(0));
    let broadcast = Broadcast {
        app: shop(),
        manifest: digest(text),
        fingerprint: digest(text),
        terms: Terms::default(),
        asked_by: "me".into(),
        message: None,
        meta: BTreeMap::new(),
        at_ms: 0,
    };
    machine.handle_broadcast(&broadcast, Moment(0)).unwrap();
    said(&mut machine);
    machine
}

/// One that holds nothing, and has heard of these hosts whether they have judged.
fn bereft(text: &str, hosts: &[(u32, bool)]) -> Coordinator {
    let mut machine = leader(text);
    for (number, has_judged) in hosts {
        hear(&mut machine, *number, *has_judged);
    }
    said(&mut machine);
    machine.handle_held(BTreeSet::new(), Moment(0));
    machine
}

fn hear(machine: &mut Coordinator, number: u32, has_judged: bool) {
    let told = AppReport { revision: Revision(1), unseen: !has_judged, ..AppReport::default() };
    let report = Report {
        host: host(number),
        incarnation: Incarnation { counter: 1, random: Salt([1; 16]) },
        sequence: 1,
        clock: Moment(0),
        accepted: machine.version(),
        author: Salt::default(),
        refused: None,
        unsupported: None,
        leaving: false,
        scanned: true,
        apps: BTreeMap::from([(shop(), told)]),
        pools: BTreeMap::new(),
        slots: Vec::new(),
        omitted: 0,
        others: Vec::new(),
        others_omitted: 0,
        probes: BTreeMap::new(),
        rejected: BTreeMap::new(),
    };
    machine.handle_report(report, Moment(0));
}

/// What is done about manifests, as words: `look`, `web-1 at 0`, `keep`.
fn said(machine: &mut Coordinator) -> Vec<String> {
    let word = |action| match action {
        Action::LookUp(_) => Some("look".to_owned()),
        Action::Fetch(fetch) => Some(format!("{} at {}", fetch.host, fetch.from)),
        Action::Keep(of, text) => {
            assert_eq!(digest(&text), of);
            Some("keep".to_owned())
        }
        Action::Store(_) | Action::Publish(_) | Action::Grant(_) => None,
    };
    std::iter::from_fn(|| machine.poll_action()).filter_map(word).collect()
}

/// Lets time pass until it wants to be called, and returns when that was and what it did.
fn turn(machine: &mut Coordinator) -> (u64, Vec<String>) {
    let at = machine.poll_timeout().expect("it has something to do");
    machine.handle_timeout(at);
    assert!(machine.poll_timeout().is_none_or(|next| next > at), "it would spin");
    (at.0, said(machine))
}

/// The same as far as hosts are asked.
fn asked(machine: &mut Coordinator) -> Vec<String> {
    turn(machine).1.into_iter().filter(|word| word != "look").collect()
}

fn piece(number: u32, of: &str, text: &str, from: usize) -> Piece {
    let fetch = Fetch { host: host(number), manifest: digest(of), from: u32::try_from(from).unwrap() };
    Piece::cut(&fetch, text).unwrap()
}

fn answer(machine: &mut Coordinator, piece: &Piece) -> Vec<String> {
    machine.handle_piece(piece, Moment(1_500));
    said(machine)
}

#[test]
fn what_is_held_is_not_looked_for_and_without_a_word_nothing_is() {
    let mut machine = leader("{}");
    hear(&mut machine, 1, true);
    assert_eq!((machine.poll_timeout(), machine.lacking().count()), (None, 0));
    machine.handle_held(BTreeSet::from([digest("{}")]), Moment(5));
    assert_eq!((said(&mut machine), machine.poll_timeout()), (vec![], None));
    machine.handle_held(BTreeSet::new(), Moment(6));
    assert_eq!((said(&mut machine), machine.lacking().count()), (vec!["look".to_owned()], 1));
}

#[test]
fn the_bus_comes_first_then_a_host_that_has_judged() {
    let mut machine = bereft("{}", &[(1, false), (2, true)]);
    assert_eq!(said(&mut machine), ["look"]);
    assert_eq!(turn(&mut machine), (1_000, vec!["look".to_owned(), "web-2 at 0".to_owned()]));
    machine.handle_manifest("[]".to_owned(), Moment(1_200));
    assert_eq!(said(&mut machine), [""; 0], "that is another one");
    machine.handle_manifest("{}".to_owned(), Moment(1_200));
    assert_eq!(said(&mut machine), ["keep"]);
    assert_eq!((machine.poll_timeout(), machine.lacking().count()), (None, 0));
    machine.handle_manifest("{}".to_owned(), Moment(1_300));
    assert_eq!(answer(&mut machine, &piece(2, "{}", "{}", 0)), [""; 0], "once is enough");
}

#[test]
fn who_does_not_answer_is_asked_again_and_then_the_next_one() {
    let mut machine = bereft("{}", &[(1, true), (2, false), (3, true)]);
    let all: Vec<Vec<String>> = (0..5).map(|_| asked(&mut machine)).collect();
    assert_eq!(all, [["web-1 at 0"], ["web-1 at 0"], ["web-3 at 0"], ["web-3 at 0"], ["web-1 at 0"]]);
    // It comes too late from one, and in time from the other.
    assert_eq!(answer(&mut machine, &piece(3, "{}", "{}", 0)), [""; 0]);
    assert_eq!(answer(&mut machine, &piece(1, "{}", "{}", 0)), ["keep"]);
}

#[test]
fn nobody_is_asked_who_cannot_have_it() {
    let mut machine = bereft("{}", &[(1, false)]);
    assert_eq!((asked(&mut machine), asked(&mut machine)), (vec![], vec![]));
    hear(&mut machine, 2, true);
    assert_eq!(asked(&mut machine), ["web-2 at 0"]);
}

#[test]
fn pieces_are_put_together_and_a_lost_one_is_asked_for_again() {
    let text = "x".repeat(2 * PIECE_MAX_BYTES + 7);
    let mut machine = bereft(&text, &[(1, true), (2, true)]);
    assert_eq!(asked(&mut machine), ["web-1 at 0"]);
    let first = piece(1, &text, &text, 0);
    assert_eq!(answer(&mut machine, &first), [format!("web-1 at {PIECE_MAX_BYTES}")]);
    assert_eq!(answer(&mut machine, &first), [""; 0], "it came twice");
    assert_eq!(asked(&mut machine), [format!("web-1 at {PIECE_MAX_BYTES}")]);
    let second = piece(1, &text, &text, PIECE_MAX_BYTES);
    assert_eq!(answer(&mut machine, &second), [format!("web-1 at {}", 2 * PIECE_MAX_BYTES)]);
    assert_eq!(answer(&mut machine, &piece(1, &text, &text, 2 * PIECE_MAX_BYTES)), ["keep"]);
}

#[test]
fn what_does_not_fit_the_digest_is_thrown_away_and_another_host_is_asked() {
    let mut machine = bereft("{}", &[(1, true), (2, true)]);
    asked(&mut machine);
    assert_eq!(answer(&mut machine, &piece(1, "{}", "[]", 0)), [""; 0]);
    assert_eq!(answer(&mut machine, &piece(1, "{}", "{}", 0)), [""; 0], "its second thoughts do not count");
    assert_eq!(machine.lacking().count(), 1);
    assert_eq!(asked(&mut machine), ["web-2 at 0"]);
    assert_eq!(answer(&mut machine, &piece(1, "{}", "{}", 0)), [""; 0], "it is not asked any more");
    assert_eq!(answer(&mut machine, &piece(2, "{}", "{}", 0)), ["keep"]);
}

#[test]
fn who_sends_crumbs_or_changes_the_length_is_not_asked_again_at_once() {
    let text = "x".repeat(2 * PIECE_MAX_BYTES);
    let mut machine = bereft(&text, &[(1, true), (2, true), (3, true)]);
    asked(&mut machine);
    let crumb = Piece { text: "x".into(), ..piece(1, &text, &text, 0) };
    assert_eq!(answer(&mut machine, &crumb), [""; 0]);
    assert_eq!(asked(&mut machine), ["web-2 at 0"]);
    assert_eq!(answer(&mut machine, &piece(2, &text, &text, 0)), [format!("web-2 at {PIECE_MAX_BYTES}")]);
    let longer = format!("{text}{text}");
    assert_eq!(answer(&mut machine, &piece(2, &text, &longer, PIECE_MAX_BYTES)), [""; 0]);
    assert_eq!(asked(&mut machine), ["web-3 at 0"]);
}

#[test]
fn only_a_leader_looks_for_anything() {
    let mut before = leader("{}");
    let desired = before.desired();
    hear(&mut before, 1, true);
    let policy =
        CoordinatorPolicy { leadership: Leadership::Leased, life: Salt([2; 16]), ..CoordinatorPolicy::default() };
    let mut machine = Coordinator::new(policy, Vec::new(), Moment(0));
    machine.handle_held(BTreeSet::new(), Moment(0));
    machine.handle_found(Some(&desired), Moment(0));
    assert_eq!((said(&mut machine), machine.poll_timeout(), machine.lacking().count()), (vec![], None, 1));
    machine.handle_lease(Lease { until: Moment(10_000), epoch: None }, Moment(0));
    assert_eq!(said(&mut machine), ["look"]);
    assert_eq!(machine.poll_timeout(), Some(Moment(1_000)));
    machine.handle_lease_lost(Moment(500));
    machine.handle_manifest("{}".to_owned(), Moment(600));
    machine.handle_timeout(Moment(1_000));
    assert_eq!((said(&mut machine), machine.poll_timeout()), (vec![], None));
}
