//! Does the guard's state machine do the right thing about every event in every state (KEY-VAULT section 7), and at the right
//! time?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use wrapdisk::guard::machine::{Action, Answer, Event, Machine, Moment, State};
use wrapdisk::guard::{Cause, EventKind, Why};
use wrapdisk::revocation::{Grace, Policy, PolicyChange};
use wrapdisk::vault::Denial;

const START: Moment = Duration::from_secs(1000);
const LOT: f64 = 0.5;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const TRANSIENT: Answer = Answer::Transient { retry_after: None };
const DENIED: Answer = Answer::Denied(Denial::Disabled);

/// In the order of the table's columns.
const EVENTS: [Event; 15] = [
    Event::Answer(Answer::Good),
    Event::Answer(DENIED),
    Event::Answer(Answer::Denied(Denial::Firewall)),
    Event::Answer(TRANSIENT),
    Event::Answer(Answer::Auth),
    Event::Answer(Answer::Corrupt),
    Event::Opened(true),
    Event::Opened(false),
    Event::Tick,
    Event::Woke,
    Event::Poke,
    Event::HeaderChanged,
    Event::Expires(86_400),
    Event::Lapsed,
    Event::End,
];

/// Where each event leads from each state. R ready; s, o, a, f, c degraded by suspicion, outage, auth, firewall, corrupt;
/// X revoked, by a fence now; x revoked (already); U resuming; E ended.
const TABLE: [(&str, &str); 9] = [
    //            answer: good, denied, firewall, transient, auth, corrupt; opened, not; tick, woke, poke, header, expires; lapsed; end
    ("ready", "RsfoacRRRRRRRXE"),
    ("suspect", "RXsssssssssssXE"),
    ("outage", "RsfoacoooooooXE"),
    ("auth", "RsfoacaaaaaaaXE"),
    ("firewall", "RsfoacfffffffXE"),
    ("corrupt", "RsfoaccccccccXE"),
    ("revoked", "UxxxxxxxxxxxxxE"),
    ("resuming", "UxxxxxRxUUUUUUE"),
    ("ended", "EEEEEEEEEEEEEEE"),
];

fn new(change: PolicyChange, local: bool) -> Machine {
    Machine::new(Policy::default().with(&change).unwrap(), local, START, LOT)
}

/// A machine in this state, one second later.
fn machine_in(state: &str, local: bool) -> Machine {
    let mut machine = new(PolicyChange::default(), local);
    let answers: &[Answer] = match state {
        "suspect" if local => return suspect_that_became_local(),
        "suspect" => &[DENIED],
        "outage" => &[TRANSIENT],
        "auth" => &[Answer::Auth],
        "firewall" => &[Answer::Denied(Denial::Firewall)],
        "corrupt" => &[Answer::Corrupt],
        "revoked" if local => &[DENIED],
        "revoked" => &[DENIED, DENIED],
        "resuming" => &[DENIED, DENIED, Answer::Good],
        _ => &[],
    };
    for answer in answers {
        machine.handle(START, Event::Answer(*answer), LOT);
    }
    if state == "ended" {
        machine.handle(START, Event::End, LOT);
    }
    machine
}

/// The header holds a key of this machine's vault now.
fn suspect_that_became_local() -> Machine {
    let mut machine = machine_in("suspect", false);
    machine.set_local(true);
    machine
}

fn letter(state: State) -> char {
    match state {
        State::Ready => 'R',
        State::Degraded(Cause::Suspect) => 's',
        State::Degraded(Cause::Outage) => 'o',
        State::Degraded(Cause::Auth) => 'a',
        State::Degraded(Cause::Firewall) => 'f',
        State::Degraded(Cause::Corrupt) => 'c',
        State::Revoked(_) => 'x',
        State::Resuming(_) => 'U',
        State::Ended => 'E',
    }
}

#[test]
fn every_event_in_every_state_leads_where_the_table_says() {
    for (name, row) in TABLE {
        let row: Vec<char> = row.chars().collect();
        assert_eq!(row.len(), EVENTS.len());
        for (event, expected) in EVENTS.into_iter().zip(row) {
            for local in [false, true] {
                let mut machine = machine_in(name, local);
                let served = machine.state().serves();
                // The vault of this machine is believed at once.
                let at_once = local && served && event == Event::Answer(DENIED);
                let expected = if at_once { 'X' } else { expected };
                let todo = machine.handle(START + secs(1), event, LOT);
                let what = format!("{name}, {event:?}, local {local}: {todo:?}, {:?}", machine.state());
                assert_eq!(letter(machine.state()), if expected == 'X' { 'x' } else { expected }, "{what}");
                let fences = todo.iter().filter(|a| **a == Action::Fence).count();
                assert_eq!(fences, usize::from(expected == 'X'), "{what}");
                let opens = todo.contains(&Action::Open);
                assert_eq!(opens, expected == 'U' && event == Event::Answer(Answer::Good), "{what}");
                assert_eq!(todo.contains(&Action::End), event == Event::End && name != "ended", "{what}");
                let told = todo.iter().any(|a| matches!(a, Action::Report(EventKind::Fenced { .. })));
                assert_eq!(told, expected == 'X', "{what}");
                if machine.state() != State::Ended {
                    assert!(machine.next_probe() < Moment::MAX, "{what}: nobody asks any more");
                }
            }
        }
    }
}

/// Until the next probe is ordered.
fn next_probe(machine: &mut Machine, lot: f64) -> (Moment, Action) {
    loop {
        let now = machine.wake();
        let probe =
            machine.handle(now, Event::Tick, lot).into_iter().find(|a| matches!(a, Action::Probe { .. }));
        if let Some(probe) = probe {
            return (now, probe);
        }
    }
}

#[test]
fn a_probe_starts_half_to_seven_tenths_of_the_interval_after_the_last() {
    for (lot, after) in [(0.0, 30), (0.5, 36), (1.0, 42)] {
        let mut machine = Machine::new(Policy::default(), false, START, lot);
        let (now, probe) = next_probe(&mut machine, lot);
        assert_eq!(now, START + secs(after));
        assert_eq!(probe, Action::Probe { deadline: secs(5), resume: false });
        // The answer took 3 s; that does not move the next one.
        machine.handle(now + secs(3), Event::Answer(Answer::Good), lot);
        assert_eq!(next_probe(&mut machine, lot).0, now + secs(after));
    }
    let short = PolicyChange { probe_interval: Some(secs(5)), ..PolicyChange::default() };
    let mut machine = new(short, false);
    let (now, probe) = next_probe(&mut machine, 1.0);
    assert_eq!((now, probe), (START + secs(3), Action::Probe { deadline: secs(1), resume: false }));
}

#[test]
fn a_first_no_is_believed_after_a_second_one_and_never_before_c() {
    let mut machine = new(PolicyChange::default(), false);
    let (now, _) = next_probe(&mut machine, LOT);
    machine.handle(now, Event::Answer(DENIED), LOT);
    // Whatever pokes it.
    assert_eq!(machine.handle(now, Event::Poke, LOT), []);
    let (confirm, _) = next_probe(&mut machine, LOT);
    assert_eq!(confirm, now + secs(2));
    let todo = machine.handle(confirm, Event::Answer(Answer::Denied(Denial::Deleted)), LOT);
    let why = Why::Denied(Denial::Deleted);
    assert_eq!(todo, [Action::Fence, Action::Report(EventKind::Fenced { why })]);
    // From then on a good answer is to be kept, to resume with.
    let (_, probe) = next_probe(&mut machine, LOT);
    assert!(matches!(probe, Action::Probe { resume: true, .. }));
}

#[test]
fn a_no_that_cannot_be_confirmed_ends_io_within_the_interval() {
    let mut machine = new(PolicyChange::default(), false);
    let (now, _) = next_probe(&mut machine, LOT);
    machine.handle(now, Event::Answer(DENIED), LOT);
    assert_eq!(machine.lease(), Some(now + secs(60)), "also when the guard is stuck");
    for answer in [TRANSIENT, Answer::Auth, Answer::Corrupt, Answer::Denied(Denial::Firewall), TRANSIENT] {
        let (now, _) = next_probe(&mut machine, LOT);
        assert_eq!(machine.handle(now, Event::Answer(answer), LOT), [], "it stays suspect");
    }
    let todo = machine.handle(now + secs(60), Event::Tick, LOT);
    assert_eq!(todo[0], Action::Fence);
    assert_eq!(machine.state(), State::Revoked(Why::Unconfirmed(Denial::Disabled)));
}

/// Gives the same answer to every probe until the fence; when that was, and what was told.
fn until_the_fence(machine: &mut Machine, answer: Answer, most: usize) -> Option<(Moment, Vec<EventKind>)> {
    let mut told = Vec::new();
    for _ in 0..most {
        let now = machine.wake();
        let mut todo = machine.handle(now, Event::Tick, LOT);
        if todo.iter().any(|a| matches!(a, Action::Probe { .. })) {
            todo.extend(machine.handle(now, Event::Answer(answer), LOT));
        }
        told.extend(
            todo.iter().filter_map(|a| if let Action::Report(kind) = a { Some(*kind) } else { None }),
        );
        if todo.contains(&Action::Fence) {
            return Some((now, told));
        }
    }
    None
}

#[test]
fn every_trouble_has_its_grace_and_its_warnings() {
    const HOUR: Duration = secs(3600);
    let first = START + secs(36);
    for (answer, cause, from, grace) in [
        (TRANSIENT, Cause::Outage, START, 24 * HOUR),
        (Answer::Auth, Cause::Auth, first, HOUR),
        (Answer::Denied(Denial::Firewall), Cause::Firewall, first, secs(900)),
    ] {
        let mut machine = new(PolicyChange::default(), false);
        let (at, told) = until_the_fence(&mut machine, answer, 10_000).unwrap();
        assert_eq!(at, from + grace, "{cause}");
        assert_eq!(machine.state(), State::Revoked(Why::Expired(cause)));
        let left = |percent: u32| grace - grace.mul_f64(f64::from(percent) / 100.0);
        let warned = |percent: u8| EventKind::Warned { cause, percent, left: left(percent.into()) };
        let fenced = EventKind::Fenced { why: Why::Expired(cause) };
        let expected = [EventKind::Degraded { cause }, warned(50), warned(80), warned(95), fenced];
        assert_eq!(told, expected, "{cause}");
    }
}

#[test]
fn without_grace_the_first_failure_ends_io_and_with_never_none_does() {
    let grace = |grace| PolicyChange { outage_grace: Some(grace), ..PolicyChange::default() };
    let mut machine = new(grace(Grace::For(Duration::ZERO)), false);
    assert_eq!(until_the_fence(&mut machine, TRANSIENT, 10).unwrap().0, START + secs(36));
    let mut machine = new(grace(Grace::Never), false);
    assert_eq!(until_the_fence(&mut machine, TRANSIENT, 10_000), None);
    let mut machine = new(PolicyChange::default(), false);
    assert_eq!(until_the_fence(&mut machine, Answer::Corrupt, 10_000), None, "an alarm, no fence");
}

#[test]
fn an_outage_is_asked_about_faster_and_retry_after_is_honoured_up_to_the_interval() {
    let mut machine = new(PolicyChange::default(), false);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let (now, _) = next_probe(&mut machine, 0.0);
        machine.handle(now, Event::Answer(TRANSIENT), 0.0);
        waits.push((machine.next_probe() - now).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 42, 42]);
    for (asked, kept) in [(0, 42), (3, 42), (60, 60), (3600, 60)] {
        let (now, _) = next_probe(&mut machine, 0.0);
        machine.handle(now, Event::Answer(Answer::Transient { retry_after: Some(secs(asked)) }), 0.0);
        assert_eq!(machine.next_probe(), now + secs(kept));
    }
}

#[test]
fn one_good_answer_ends_every_trouble_and_says_how_long_it_was() {
    let mut machine = new(PolicyChange::default(), false);
    machine.handle(START + secs(10), Event::Answer(TRANSIENT), LOT);
    machine.handle(START + secs(20), Event::Answer(Answer::Auth), LOT);
    let todo = machine.handle(START + secs(100), Event::Answer(Answer::Good), LOT);
    assert_eq!(todo[0], Action::Report(EventKind::Recovered { after: secs(90) }));
    assert_eq!(machine.last_good(), START + secs(100));
    assert_eq!(machine.fence_at(), None);
}

#[test]
fn after_a_long_sleep_the_vault_is_asked_before_a_grace_counts() {
    let mut machine = new(PolicyChange::default(), false);
    let (now, _) = next_probe(&mut machine, LOT);
    machine.handle(now, Event::Answer(TRANSIENT), LOT);
    // A weekend in a bag.
    let monday = now + secs(60 * 3600);
    let todo = machine.handle(monday, Event::Woke, LOT);
    assert!(matches!(todo[..], [Action::Probe { .. }]), "{todo:?}");
    assert_eq!(machine.handle(monday, Event::Tick, LOT), []);
    let mut away = machine.clone();
    assert_eq!(machine.handle(monday, Event::Answer(Answer::Good), LOT).len(), 1);
    assert_eq!(machine.state(), State::Ready);
    assert_eq!(away.handle(monday, Event::Answer(TRANSIENT), LOT)[0], Action::Fence);
}

#[test]
fn the_lease_is_the_grace_and_at_least_two_intervals() {
    let machine = new(PolicyChange::default(), false);
    assert_eq!(machine.lease(), Some(START + secs(24 * 3600)));
    let none = PolicyChange { outage_grace: Some(Grace::For(Duration::ZERO)), ..PolicyChange::default() };
    assert_eq!(new(none, false).lease(), Some(START + secs(120)));
    let never = PolicyChange { outage_grace: Some(Grace::Never), ..PolicyChange::default() };
    assert_eq!(new(never, false).lease(), None);
    let mut machine = new(PolicyChange::default(), false);
    machine.handle(START + secs(9), Event::Answer(Answer::Auth), LOT);
    assert_eq!(machine.lease(), Some(START + secs(3609)));
}

#[test]
fn a_key_that_is_about_to_expire_is_told_once_a_day_and_ends_nothing() {
    const DAY: i64 = 86_400;
    let mut machine = new(PolicyChange::default(), false);
    let mut told = |seconds| {
        let todo = machine.handle(START, Event::Expires(seconds), LOT);
        assert_eq!(machine.state(), State::Ready);
        todo.first().copied()
    };
    let expiring = |days| Some(Action::Report(EventKind::Expiring { days }));
    assert_eq!(told(31 * DAY), None);
    assert_eq!(told(30 * DAY + 5), expiring(30));
    assert_eq!(told(30 * DAY + 4), None);
    assert_eq!(told(29 * DAY), expiring(29));
    assert_eq!(told(-1), expiring(-1));
    assert_eq!(told(-100 * DAY), None);
}
