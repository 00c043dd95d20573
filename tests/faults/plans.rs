//! Faults of whole plans: each is survived, and something comes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn::io::Rng;
use cairn::limits::FREE_SPACE_FLOOR;
use cairn::raft::tail::Retention;
use cairn::sim::aim;
use cairn::sim::disk::PowerCut;
use cairn::sim::draw;
use cairn::sim::fault::{Fault, Links};
use cairn::sim::plan::Plan;
use cairn::sim::run::{Mode, Verdict, run_plan};
use cairn::sim::world::Seed;

#[test]
fn every_kind_of_fault_alone_is_survived_and_does_something() {
    let base = Plan::quiet(4);
    let run_with = |fault| {
        let faults = vec![(Duration::from_secs(2), fault)];
        run_plan(Seed(5), Plan { faults, ..base.clone() }, Mode::default())
    };
    let does_something = |fault: &Fault| {
        let span = fault.span().min(Duration::from_secs(8));
        let report = run_with(fault.with_span(span));
        assert_eq!(report.verdict, Verdict::Passed, "{fault:?}: {report}");
        // Weather as it is anyway does nothing, for the same time.
        let nothing = run_with(Fault::Link { from: 0, to: 1, weather: base.weather, span });
        report.trace.0 != nothing.trace.0
    };
    let drawn =
        [3, 4, 5, 6].map(|seed| draw::one_of_each_kind(&mut Rng::from_seed([seed; 32]).stream("kinds"), base.nodes));
    assert!(drawn[0].len() > 25);
    for kind in 0..drawn[0].len() {
        // Some are of what nobody needs at the time, as a link between two that follow.
        let faults = drawn.each_ref().map(|faults| &faults[kind]);
        assert!(faults.into_iter().any(does_something), "nothing came of any of {faults:?}");
    }
}

#[test]
fn what_is_aimed_at_happens_and_is_survived() {
    let mut missing = BTreeSet::from([
        "a longer end of a log was replaced by a shorter one",
        "a member was heard late, from an earlier life",
        "a member was to be removed while so many were off that the rest could not go on",
        "a removed member was started again where it reaches nobody",
        "a worker came back just before its lease was over, and was heard after",
        "a worker renewed its lease before its expiry was applied",
        "a worker was drained",
        "another member's reads were answered under a lease",
        "the leader was gone just after it carried out what was passed on",
        "there was no room in its entry for a command",
        "there was no room in its entry for what was passed on",
        "the power went for the last voter just after the last but one was removed",
        "an answer came to a question of an earlier life",
        "leadership was to be transferred in a joint configuration",
        "what an attempt ran in was gone",
        "where a member was in an earlier life was heard in the next",
    ]);
    for seed in 0..4 {
        let plans = aim::one_of_each(&Rng::from_seed([seed; 32]), &Plan::quiet(3));
        for (name, plan) in plans {
            let report = run_plan(Seed(u64::from(seed)), plan, Mode::default());
            assert_eq!(report.verdict, Verdict::Passed, "{name}: {report}\n{}", report.plan);
            missing.retain(|mark| !report.marks.contains_key(mark));
        }
    }
    assert!(missing.is_empty(), "never: {missing:?}");
}

/// The marks that a plan comes by with one fault, which it must survive.
fn marks_with(fault: Fault) -> Vec<&'static str> {
    let plan = Plan { faults: vec![(Duration::from_secs(2), fault)], ..Plan::quiet(3) };
    let report = run_plan(Seed(7), plan, Mode::default());
    assert_eq!(report.verdict, Verdict::Passed, "{fault:?}: {report}");
    report.marks.into_keys().collect()
}

const ALL_LOST: PowerCut = PowerCut { drop_permille: 1_000, tear_permille: 0 };

#[test]
fn the_power_goes_for_all_just_after_a_removal() {
    let cut = Some((Duration::from_millis(2), ALL_LOST));
    let marks = marks_with(Fault::Remove { node: 2, returns: false, cut });
    assert!(marks.contains(&"the power went for all just after a removal"), "{marks:?}");
    assert!(marks.contains(&"the power went for all at once"), "{marks:?}");
}

#[test]
fn who_is_behind_waits_while_there_is_no_room_for_a_snapshot() {
    // All that could lead have little space, though enough for what they write, when one comes back to whom the log is gone.
    let little = |node| Fault::Full { node, left: FREE_SPACE_FLOOR + 20_000, span: Duration::from_secs(15) };
    let away = Fault::Cut { links: Links::Isolate { node: 2 }, span: Duration::from_secs(6) };
    let faults = [(2_000, away), (7_000, little(0)), (7_000, little(1))];
    let faults = faults.map(|(at, fault)| (Duration::from_millis(at), fault)).to_vec();
    let retention = Retention { entries: 1, ..Retention::default() };
    let plan = Plan { faults, retention, stock: 60, ..Plan::quiet(3) };
    let report = run_plan(Seed(7), plan, Mode::default());
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    assert!(report.marks.contains_key("there was no room for a snapshot"), "{report}");
    assert!(report.marks.contains_key("a snapshot was installed"), "{report}");
}

#[test]
fn members_are_upgraded_one_after_another_and_may_go_back_until_all_are() {
    let upgrade = |node, back| Fault::Upgrade { node, back, exits: true, down: Duration::from_millis(200) };
    let faults = [(2, 0, false), (5, 1, false), (8, 1, true), (11, 1, false), (14, 2, false)];
    let faults = faults.map(|(at, node, back)| (Duration::from_secs(at), upgrade(node, back))).to_vec();
    // What goes back does so only while the cluster is in the first format: two of three do not change it.
    let marks_of = |old| {
        let report = run_plan(Seed(7), Plan { faults: faults.clone(), old, ..Plan::quiet(3) }, Mode::default());
        assert_eq!(report.verdict, Verdict::Passed, "{old:b}: {report}");
        ["a format was begun", "a member went back to an older version"].map(|mark| report.marks.contains_key(mark))
    };
    assert_eq!(marks_of(0b111), [true, true]);
    assert_eq!(marks_of(0b000), [true, false]);
}

#[test]
fn what_is_asked_while_leadership_is_handed_over_is_done() {
    let pause = Duration::from_millis(5);
    let load = Plan { clients: 16, foreign: 16, operations: 400, pause, submitters: 0, ..Plan::quiet(3) };
    let transfers = (0..24).map(|turn| (Duration::from_millis(200 * turn), Fault::Transfer { to: turn as usize % 3 }));
    let report = run_plan(Seed(7), Plan { faults: transfers.collect(), ..load }, Mode::default());
    assert_eq!(report.verdict, Verdict::Passed, "{report}");
    assert!(report.marks.contains_key("proposals waited while leadership was handed over"), "{report}");
    assert_eq!(report.operations.0, report.operations.1, "{report}");
}

#[test]
fn a_new_machine_loses_its_power_while_it_makes_its_databases() {
    let kept = PowerCut { drop_permille: 0, tear_permille: 0 };
    let made_anew = |operations: u64| {
        let marks = marks_with(Fault::Join { node: 2, birth: Some((operations, kept)), removed: None, expected: None });
        marks.contains(&"a database whose making was cut short was made anew")
    };
    assert!((0..16).any(made_anew), "no cut came while a database was half made");
}
