//! Rare situations that a seed aims at: in most seeds a fault or two of [`stage`](crate::sim::stage), with a load that
//! would show what goes wrong, often with nothing else that disturbs it.

use std::time::Duration;

use crate::io::{Rng, RngStream};
use crate::limits::{CLOCK_DRIFT_PPM_MAX, ELECTION_TIMEOUT_MIN};
use crate::raft::tail::Retention;
use crate::sim::disk::{Damage, DiskOp, Files, PowerCut};
use crate::sim::fault::{Fault, Links, Place};
use crate::sim::guests::FIRST_GUEST;
use crate::sim::load::LOUD_READS;
use crate::sim::mark::Marks;
use crate::sim::network::Weather;
use crate::sim::plan::Plan;

/// Has a plan aim at something.
type Aim = fn(&mut RngStream, &mut Plan);

/// What may be aimed at.
const AIMS: &[(&str, Aim)] = &[
    ("reads-that-take-long", |rng, plan| {
        look_closely(plan);
        let (delay, span) = (millis(rng, 20, 60), millis(rng, 10_000, 30_000));
        add(rng, plan, 3_000, Fault::Far { delay, span });
        if rng.chance(500) {
            add(rng, plan, 10_000, Fault::Transfer { to: 1 });
        }
    }),
    ("machines-that-are-far-from-each-other", |rng, plan| {
        (plan.clients, plan.pause, plan.one_door) = (plan.clients.max(3), Duration::from_millis(300), true);
        let delay = millis(rng, 100, 160);
        plan.faults.push((Duration::ZERO, Fault::Far { delay, span: Duration::from_secs(40) }));
    }),
    ("reads-of-a-member-that-is-behind", |rng, plan| {
        (plan.clients, plan.pause, plan.one_door) = (8, Duration::from_millis(300), true);
        (plan.keys, plan.one_session, plan.operations) = (1, false, 40);
        let (node, delay, span) = (member(rng, plan), millis(rng, 20, 60), millis(rng, 10_000, 20_000));
        add(rng, plan, 1_000, Fault::Far { delay, span });
        add(rng, plan, 1_000, Fault::Stall { node, files: Files::All, span });
    }),
    ("users-of-a-member-that-is-behind", |rng, plan| {
        (plan.guests, plan.token, plan.one_door) = (3, true, true);
        (plan.keys, plan.operations, plan.pause) = (2, 80, Duration::from_millis(300));
        // Of whom the first asks this one alone.
        let node = FIRST_GUEST as usize % plan.nodes;
        for at in [2_000, 30_000] {
            let span = millis(rng, 10_000, 25_000);
            plan.faults.push((Duration::from_millis(at), Fault::Stall { node, files: Files::State, span }));
        }
    }),
    ("reads-under-a-lease-of-a-leader-that-is-left-alone", |rng, plan| {
        under_lease(rng, plan, |rng, [leader, _], span| {
            let isolate = Fault::Cut { links: Links::Isolate { node: leader }, span };
            match rng.chance(500) {
                // What it has asked is answered while it stands still, and when it goes on nobody reaches it.
                true => vec![(0, Fault::Pause { node: leader, span: millis(rng, 700, 1_400) }), (90, isolate)],
                false => vec![(0, isolate)],
            }
        });
    }),
    ("reads-under-a-lease-when-others-are-helped-to-lead", |rng, plan| {
        // It has asked another to lead, and hears no more.
        under_lease(rng, plan, |rng, [_, other], span| {
            vec![(0, Fault::Transfer { to: other }), (rng.range(1, 60), Fault::Cut { links: Links::LeaderDeaf, span })]
        });
    }),
    ("the-end-of-sessions-that-are-used-again", |rng, plan| {
        let delay = millis(rng, 150, 230);
        add(rng, plan, 2_000, Fault::LateUse { delay });
    }),
    ("a-leader-that-has-missed-its-fall", |rng, plan| {
        look_closely(plan);
        for _ in 0..2 {
            let span = plan.election_timeout * rng.range(2, 5) as u32;
            add(rng, plan, 9_000, Fault::PauseLeader { span });
        }
    }),
    ("ends-of-logs-that-part", |rng, plan| {
        let cut = cut(rng);
        for _ in 0..3 {
            let down = millis(rng, 100, 2_000);
            add(rng, plan, 9_000, Fault::Diverge { cut, down });
        }
    }),
    ("commands-that-are-done-and-not-answered", |rng, plan| {
        (plan.clients, plan.pause, plan.keys) = (plan.clients.max(4), Duration::from_millis(300), plan.keys.max(3));
        let (direct, after, down) = (rng.chance(250), millis(rng, 20, 120), millis(rng, 200, 3_000));
        let foreign = !direct && rng.chance(400);
        add(rng, plan, 3_000, Fault::Unanswered { direct, foreign, after, down });
    }),
    ("many-commands-at-once", |rng, plan| {
        many_at_once(rng, plan);
        let delay = millis(rng, 2, 40);
        plan.faults.push((Duration::ZERO, Fault::Far { delay, span: Duration::from_secs(20) }));
        if rng.chance(500) {
            // They are done, and nobody hears of it.
            for _ in 0..4 {
                let (node, down) = (member(rng, plan), millis(rng, 100, 1_000));
                add(rng, plan, 15_000, Fault::Kill { node, down });
            }
        }
    }),
    ("a-removal-that-leaves-no-majority", |rng, plan| {
        let down = millis(rng, 1, 2_000);
        add(rng, plan, 8_000, Fault::RemoveInMinority { down });
    }),
    ("the-last-voter", |rng, plan| {
        (plan.nodes, plan.clients, plan.pause) = (3, 1, Duration::from_millis(1_200));
        run_elsewhere(plan);
        let (stalled, cut, down) = (rng.chance(500), cut(rng), millis(rng, 10_000, 14_000));
        add(rng, plan, 6_000, Fault::RemoveToLast { stalled, cut, down });
    }),
    ("answers-of-another-life", |rng, plan| {
        look_closely(plan);
        for _ in 0..2 {
            let (node, span, down) = (member(rng, plan), millis(rng, 3_000, 6_000), millis(rng, 300, 1_500));
            add(rng, plan, 8_000, Fault::Echo { node, span, down });
        }
    }),
    ("a-worker-that-asks-who-has-fallen-behind", |rng, plan| {
        run_elsewhere(plan);
        (plan.workers, plan.submitters, plan.tasks) = (plan.workers.max(1), 3, 12);
        for round in 0..3 {
            let (other, lag, span) = (member(rng, plan), millis(rng, 1_500, 4_000), millis(rng, 5_000, 8_000));
            let fault = Fault::Behind { node: plan.nodes, other, lag, span };
            plan.faults.push((Duration::from_secs(2 + 14 * round), fault));
        }
    }),
    ("a-leader-whose-state-is-behind", |rng, plan| {
        // It gives tasks to workers that others know to leave, or that have failed since.
        run_elsewhere(plan);
        (plan.workers, plan.submitters, plan.tasks) = (plan.workers.max(2), 3, 12);
        let leader = member(rng, plan);
        for round in 0..3 {
            let at = Duration::from_secs(1 + 9 * round);
            plan.faults.push((at, Fault::Transfer { to: leader }));
            let (at, span) = (at + Duration::from_millis(500), millis(rng, 4_000, 7_000));
            plan.faults.push((at, Fault::Stall { node: leader, files: Files::All, span }));
            for worker in plan.nodes..plan.nodes + plan.workers {
                let leaves = match rng.chance(500) {
                    true => Fault::Stop { node: worker, exits: rng.chance(500), down: millis(rng, 50, 2_000) },
                    false => Fault::Drain { node: worker, span: millis(rng, 500, 4_000) },
                };
                plan.faults.push((at + millis(rng, 0, 4_000), leaves));
            }
        }
    }),
    ("a-new-leader-whose-state-is-behind", |rng, plan| {
        // It has all of the log, and gives tasks to workers that have tried them since; who tells these of it is not behind.
        run_elsewhere(plan);
        (plan.workers, plan.submitters, plan.tasks) = (plan.workers.max(4), 10, 12);
        plan.brief_permille = 700;
        let ahead = member(rng, plan);
        let behind: Vec<Place> = (0..plan.nodes).filter(|node| *node != ahead).collect();
        for node in behind.iter().copied() {
            let (files, span) = (Files::State, Duration::from_secs(25));
            plan.faults.push((Duration::from_secs(1), Fault::Stall { node, files, span }));
        }
        let often = rng.chance(500);
        let mut at = Duration::from_secs(1);
        while at < Duration::from_secs(25) {
            if !often {
                // It has things fail meanwhile.
                plan.faults.push((at, Fault::Transfer { to: ahead }));
                at += millis(rng, 2_000, 3_500);
            }
            plan.faults.push((at, Fault::Transfer { to: *rng.pick(&behind) }));
            at += if often { millis(rng, 1_500, 2_500) } else { millis(rng, 3_000, 5_000) };
        }
    }),
    ("renewals-about-the-end-of-a-lease", |rng, plan| {
        // It hangs on milliseconds whether the lease ends first.
        for round in 0..2 {
            let (node, delay) = (runner(rng, plan), millis(rng, 180, 240));
            plan.faults.push((Duration::from_secs(1 + 18 * round), Fault::LateRenewals { node, delay }));
        }
    }),
    ("a-worker-that-comes-back-about-the-end-of-its-lease", |rng, plan| {
        (plan.submitters, plan.tasks, plan.workers) = (3, 12, plan.workers.max(2));
        for round in 0..2 {
            // A member has to find its place in the cluster first.
            let (node, after) = (runner(rng, plan), millis(rng, 30, 400));
            let before = if node < plan.nodes { millis(rng, 2_500, 4_000) } else { millis(rng, 500, 1_600) };
            plan.faults.push((Duration::from_secs(1 + 18 * round), Fault::LateReturn { node, before, after }));
        }
    }),
    ("a-worker-that-hears-late-and-is-cut-off", |rng, plan| {
        // It counts its lease by a clock that is as slow as it may be, and the others by fast ones; what it runs does not let itself be ended.
        (plan.workers, plan.idle) = (plan.workers.max(1), 0);
        (plan.submitters, plan.tasks, plan.stubborn_permille) = (3, 12, 900);
        let (node, bound, always) = (member(rng, plan), CLOCK_DRIFT_PPM_MAX as i64, Duration::from_secs(60));
        for place in 0..plan.nodes {
            let ppm = if place == node { -bound } else { bound };
            plan.faults.push((Duration::ZERO, Fault::Speed { node: place, ppm, span: always }));
        }
        // Who leads gets on.
        plan.faults.push((Duration::from_millis(500), Fault::Transfer { to: (node + 1) % plan.nodes }));
        for round in 0..2 {
            let at = Duration::from_secs(4 + 28 * round) + millis(rng, 0, 2_500);
            plan.faults.push((at, Fault::Strand { node, span: millis(rng, 17_000, 25_000) }));
        }
    }),
    ("attempts-whose-directories-are-removed", |rng, plan| {
        (plan.submitters, plan.tasks, plan.stubborn_permille) = (3, 12, 900);
        for round in 0..4 {
            let node = runner(rng, plan);
            plan.faults.push((Duration::from_secs(2 + 6 * round) + millis(rng, 0, 3_000), Fault::Tidy { node }));
        }
    }),
    ("words-of-an-earlier-life", |rng, plan| {
        (plan.submitters, plan.tasks, plan.workers) = (3, 12, plan.workers.max(2));
        for round in 0..2 {
            let (node, down) = (runner(rng, plan), millis(rng, 1, 3_000));
            plan.faults.push((Duration::from_secs(2 + 18 * round), Fault::LateWords { node, down }));
        }
    }),
    ("a-removed-member-that-is-alone", |rng, plan| {
        let node = member(rng, plan);
        add(rng, plan, 6_000, Fault::RemoveAndIsolate { node });
    }),
    ("a-state-that-rots", |rng, plan| {
        plan.stock = 60;
        let (node, permille, down) = (member(rng, plan), *rng.pick(&[20, 60, 200]), millis(rng, 100, 3_000));
        // Only what was not written lately rots, and it is written when the node stops.
        plan.faults.push((
            Duration::from_millis(200),
            Fault::Stop { node, exits: rng.chance(500), down: Duration::from_millis(300) },
        ));
        let (damage, files) = (Damage::Flipped, Files::State);
        let at = millis(rng, 3_000, 8_000);
        plan.faults.push((at, Fault::Rot { node, damage, files, permille, stopped: true, down }));
        if rng.chance(700) {
            // What it did not look at when it started it needs then.
            let (cut, at) = (cut(rng), at + down + millis(rng, 500, 3_000));
            plan.faults.push((at, Fault::Power { node, cut, down: millis(rng, 100, 1_000) }));
        }
    }),
    ("a-log-that-rots", |rng, plan| {
        (plan.stock, plan.retention) = (20, Retention::default()); // there is a log
        for round in 0..3 {
            let (node, down) = (member(rng, plan), millis(rng, 100, 3_000));
            let damage = *rng.pick(&[Damage::Flipped, Damage::Lost, Damage::Misdirected]);
            let (files, permille, stopped) = (Files::Log, *rng.pick(&[20, 60, 200]), rng.chance(500));
            let at = Duration::from_secs(4 + 12 * round) + millis(rng, 0, 4_000);
            plan.faults.push((at, Fault::Rot { node, damage, files, permille, stopped, down }));
        }
    }),
    ("a-log-that-is-cut-off-where-it-goes-over-to-another-block", |rng, plan| {
        many_at_once(rng, plan);
        (plan.retention.entries, plan.retention.bytes) = (40, 2_000);
        plan.operations = plan.operations.max(250); // there are many blocks
        plan.value_bytes = 600; // and a write into one is more than a sector
        let first = member(rng, plan);
        for (turn, at) in [1_500, 6_000, 10_500].into_iter().enumerate() {
            let marks = Marks::named("a block of the log took the place of one that was no longer in use");
            // Each another one: a machine whose crash did not come does not wait for the next either.
            let (node, down) = ((first + turn) % plan.nodes, millis(rng, 100, 2_000));
            // What gathers while its disk is held up is written at once, and is more than a sector of a block.
            if rng.chance(700) {
                let span = millis(rng, 2_000, 4_000);
                plan.faults.push((Duration::from_millis(at - 500), Fault::Stall { node, files: Files::All, span }));
            }
            // Whole writes are lost, or what a write is made of: the header of a block without what follows, or that without it.
            let (drop_permille, tear_permille) = *rng.pick(&[(500, 0), (0, 1_000), (0, 1_000)]);
            let cut = PowerCut { drop_permille, tear_permille };
            plan.faults.push((Duration::from_millis(at), Fault::Crash { node, marks, cut, down }));
        }
    }),
    ("states-that-are-written-anew-while-they-change", |rng, plan| {
        (plan.chunk_bytes, plan.stock) = (*rng.pick(&[1, 100, 1_000]), *rng.pick(&[10, 60]));
        (plan.clients, plan.pause) = (8, Duration::from_millis(30));
        // They last as long as that goes on.
        plan.operations = plan.operations.max(240);
        for _ in 0..4 {
            let after = millis(rng, 0, 400);
            let cut = if rng.chance(400) { Some((after, cut(rng))) } else { None };
            let node = member(rng, plan);
            add(rng, plan, 6_000, Fault::Defragment { node, cut, span: Duration::ZERO });
        }
        let node = member(rng, plan);
        let (at, span) = (millis(rng, 300, 3_000), millis(rng, 1_000, 4_000));
        match rng.range(0, 3) {
            0 => plan.faults.push((at, Fault::Stall { node, files: Files::All, span })),
            1 => {
                for (op, after) in [(DiskOp::Write, 0), (DiskOp::Sync, 4_000)] {
                    let at = at + Duration::from_millis(after);
                    plan.faults.push((at, Fault::Defragment { node, cut: None, span: Duration::ZERO }));
                    plan.faults.push((at + millis(rng, 1, 60), Fault::DiskError { node, op, down: span }));
                }
            }
            _ => {}
        }
    }),
    ("a-snapshot-that-comes-while-a-state-is-written-anew", |rng, plan| {
        (plan.clients, plan.operations, plan.retention.entries) = (8, plan.operations.max(80), 1);
        // There is little to write, so that what changes is among it.
        (plan.stock, plan.chunk_bytes, plan.pause) =
            (*rng.pick(&[0, 0, 10]), 1, Duration::from_millis(*rng.pick(&[30, 300])));
        let node = member(rng, plan);
        let (at, span) = (millis(rng, 300, 3_000), millis(rng, 1_500, 4_000));
        plan.faults.push((at, Fault::Cut { links: Links::Isolate { node }, span }));
        let begin = (at + span).saturating_sub(millis(rng, 0, 400));
        plan.faults.push((begin, Fault::Defragment { node, cut: None, span: millis(rng, 1_500, 4_000) }));
    }),
    ("members-that-change-at-once", |rng, plan| {
        (plan.nodes, plan.voters_max) = (*rng.pick(&[5, 6, 7]), 3);
        plan.retention.in_memory = *rng.pick(&[0, plan.retention.in_memory]);
        let at = millis(rng, 300, 3_000);
        for node in plan.nodes.div_ceil(2)..plan.nodes {
            if !plan.is_late(node) {
                plan.faults.push((at, Fault::Join { node, birth: None, removed: None, expected: None }));
            }
        }
        plan.faults.push((at, Fault::Crowded { these: !0, span: Duration::from_secs(8) }));
        if rng.chance(500) {
            plan.faults.push((at + millis(rng, 0, 2_000), Fault::Move { node: 1, down: millis(rng, 10, 500) }));
            plan.faults.push((at + millis(rng, 0, 2_000), Fault::Remove { node: 2, returns: false, cut: None }));
        }
    }),
    ("a-copy-of-anothers-disk", |rng, plan| {
        // What tells whose disk is whose, nothing else may disturb.
        (plan.nodes, plan.weather) = (*rng.pick(&[3, 5]), Weather::CALM);
        let other = rng.range(1, plan.nodes as u64) as Place;
        let (mut at, mut age) = (millis(rng, 4_000, 12_000), millis(rng, 5_000, 12_000));
        let down = Duration::from_millis(500);
        let mut moves = Vec::new();
        match rng.range(0, 8) {
            // Least is known of a member while the cluster forms, and nobody knows it when the founder is gone.
            0..3 => {
                let until = *rng.pick(&[600, 4_000]);
                (plan.early, at, age) = (true, millis(rng, 0, until), Duration::ZERO);
                moves.push((Duration::ZERO, Fault::Far { delay: millis(rng, 1, 150), span: Duration::from_secs(8) }));
            }
            // It is not where it was when the copy was made; but others have heard where it is.
            3..5 => {
                let (from, until) = (at.as_millis() as u64 + 500, (at + age).as_millis() as u64 - 3_500);
                moves.push((millis(rng, from, until), Fault::Move { node: other, down }));
            }
            // Nobody is where its state has it, which only the log says.
            5..7 => {
                plan.retention = Retention::default();
                let mut next = Duration::from_secs(1);
                for node in (1..plan.nodes).filter(|node| !plan.is_late(*node)) {
                    moves.push((next, Fault::Move { node, down }));
                    next += millis(rng, 1_000, 1_500);
                }
                (at, age) = (next + millis(rng, 3_500, 5_000), Duration::ZERO);
            }
            // It is not where it was taken in.
            _ if rng.chance(500) => {
                age = *rng.pick(&[Duration::ZERO, age]);
                let until = (at + age).as_millis() as u64 - 3_500;
                moves.push((millis(rng, 300, until), Fault::Move { node: other, down }));
            }
            _ => age = *rng.pick(&[Duration::ZERO, age]),
        }
        plan.faults = moves;
        plan.faults.push((at, Fault::WrongDisk { node: 0, other, age }));
    }),
    ("a-member-that-moves-while-its-leader-stands-still", |rng, plan| {
        // Two, who know from each other alone where they are, and one of them speaks in two lives while the other hears nothing.
        plan.nodes = 3;
        if plan.is_late(1) || plan.is_late(2) {
            return;
        }
        plan.faults.push((Duration::from_secs(1), Fault::Remove { node: 1, returns: false, cut: None }));
        plan.faults.push((Duration::from_millis(2_500), Fault::Transfer { to: 0 }));
        let at = Duration::from_millis(3_500);
        plan.faults.push((at, Fault::Pause { node: 0, span: millis(rng, 3_000, 6_000) }));
        plan.faults.push((at + millis(rng, 0, 800), Fault::Kill { node: 2, down: millis(rng, 50, 400) }));
        plan.faults.push((at + millis(rng, 1_000, 2_000), Fault::Move { node: 2, down: millis(rng, 50, 400) }));
    }),
    ("tasks-that-nothing-disturbs", |_, plan| {
        // What ends or is lost here does so without a reason.
        plan.faults.clear();
        plan.weather = Weather::CALM;
        (plan.submitters, plan.tasks, plan.workers) = (3, 12, plan.workers.max(1));
    }),
    ("a-move-of-an-earlier-life", |rng, plan| {
        // Of two, who know from each other alone where they are, one leads, and hears last of what the other said first.
        plan.nodes = 3;
        if plan.is_late(1) || plan.is_late(2) {
            return;
        }
        plan.faults.retain(|(_, fault)| !matches!(fault, Fault::Move { node: 2, .. }));
        plan.faults.push((Duration::from_secs(1), Fault::Remove { node: 1, returns: false, cut: None }));
        plan.faults.push((Duration::from_millis(2_500), Fault::Transfer { to: 0 }));
        let (down, after) = (millis(rng, 50, 400), millis(rng, 500, 4_000));
        plan.faults.push((Duration::from_millis(3_500), Fault::LateMove { node: 2, down, after }));
    }),
    ("commands-that-find-no-room-in-their-entry", |rng, plan| {
        // There is no room for two that are loud, and they wait together whenever another begins to lead.
        (plan.clients, plan.pause) = (8, Duration::from_millis(30));
        (plan.keys, plan.operations, plan.one_door) = (2, plan.operations.max(40), rng.chance(500));
        (plan.loud_permille, plan.entry_reads) = (600, LOUD_READS + LOUD_READS / 4);
        let (delay, span) = (millis(rng, 30, 80), Duration::from_secs(30));
        plan.faults.push((Duration::from_millis(300), Fault::Far { delay, span }));
        for round in 0..8 {
            let at = Duration::from_secs(2 + 3 * round) + millis(rng, 0, 1_000);
            plan.faults.push((at, Fault::Transfer { to: round as Place % plan.nodes }));
        }
    }),
    ("a-leader-that-is-asked-to-go-between-two-configurations", |rng, plan| {
        // Two are to vote, which takes two configurations at once; the disk of who is to lead is held up meanwhile.
        (plan.nodes, plan.voters_max) = (5, 5);
        let (at, to) = (millis(rng, 300, 3_000), rng.range(1, 3) as Place);
        for node in [3, 4] {
            let after = millis(rng, 0, 3_000);
            plan.faults.push((at + after, Fault::Join { node, birth: None, removed: None, expected: None }));
        }
        for _ in 0..2 {
            plan.faults.push((at, Fault::TransferInJoint { to }));
        }
    }),
    ("disks-that-fail-while-a-member-starts", |rng, plan| {
        // Until then all that it reads is in its memory.
        for round in 0..3 {
            let (node, op) = (member(rng, plan), *rng.pick(&[DiskOp::Read, DiskOp::Read, DiskOp::Write, DiskOp::Sync]));
            let at = Duration::from_secs(2 + 8 * round) + millis(rng, 0, 3_000);
            plan.faults.push((at, Fault::Kill { node, down: Duration::from_millis(100) }));
            let fails = Fault::DiskError { node, op, down: millis(rng, 1_000, 4_000) };
            plan.faults.push((at + Duration::from_millis(50), fails));
        }
    }),
    ("members-that-are-awaited", |rng, plan| {
        plan.nodes = *rng.pick(&[3, 5]);
        let (node, expected) = (plan.nodes - 1, Some(rng.chance(700)));
        // Its log may end at each of the entries that are about it.
        (plan.flow.append_bytes, plan.flow.appends) = *rng.pick(&[(1, 1), (plan.flow.append_bytes, plan.flow.appends)]);
        if !plan.is_late(node) {
            add(rng, plan, 3_000, Fault::Join { node, birth: None, removed: None, expected });
        }
    }),
    ("a-first-start-that-is-cut-short", |rng, plan| {
        let node = plan.nodes - 1;
        let birth = Some((rng.range(0, 16), PowerCut { drop_permille: *rng.pick(&[0, 0, 300]), tear_permille: 0 }));
        if !plan.is_late(node) {
            add(rng, plan, 3_000, Fault::Join { node, birth, removed: None, expected: None });
        }
    }),
];

/// In how many seeds something is aimed at, in thousandths, and in how many of those nothing else happens.
const AIMED_PERMILLE: u64 = 650;
const ALONE_PERMILLE: u64 = 500;

/// What finds something in fewest of the seeds that aim at it, so that more of them do.
const HARD: &[&str] = &[
    "reads-under-a-lease-of-a-leader-that-is-left-alone",
    "a-new-leader-whose-state-is-behind",
    "a-log-that-is-cut-off-where-it-goes-over-to-another-block",
    "a-copy-of-anothers-disk",
];
/// How often one of those is drawn for each time that another is.
const HARD_TIMES: usize = 3;

/// The names of what may be aimed at.
pub fn names() -> impl Iterator<Item = &'static str> {
    AIMS.iter().map(|(name, _)| *name)
}

/// Has a plan aim at something, or not; where one is wanted, at that, with the same draws otherwise. Says whether that is all that
/// may happen.
pub(super) fn aim(rng: &mut RngStream, plan: &mut Plan, wanted: Option<&str>) -> bool {
    let (drawn, alone, calm) = (rng.chance(AIMED_PERMILLE), rng.chance(ALONE_PERMILLE), rng.chance(700));
    let times = |(name, _): &&(&str, Aim)| if HARD.contains(name) { HARD_TIMES } else { 1 };
    let weighted: Vec<_> = AIMS.iter().flat_map(|aim| std::iter::repeat_n(aim, times(&aim))).collect();
    let picked = *rng.pick(&weighted);
    let wanted = AIMS.iter().find(|(name, _)| wanted == Some(name));
    let misled = plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. }));
    if !(drawn || wanted.is_some()) || plan.early || misled {
        return false;
    }
    let (name, aim) = wanted.unwrap_or(picked);
    let mut aimed = |plan: &Plan| {
        let mut aimed = Plan { aim: Some((*name).into()), ..plan.clone() };
        aim(rng, &mut aimed);
        aimed.faults.sort_by_key(|(at, _)| *at);
        aimed
    };
    if !alone && plan.nodes >= 3 {
        let among = aimed(plan);
        // What else happens knows members and workers by their places.
        if among.nodes == plan.nodes && among.workers >= plan.workers {
            *plan = among;
            return false;
        }
    }
    (plan.nodes, plan.beyond_budget) = (plan.nodes.max(3), false);
    plan.workers = plan.workers.min(2);
    plan.faults.clear();
    plan.weather = if calm { Weather::CALM } else { plan.weather };
    *plan = aimed(plan);
    true
}

/// A plan for each thing that may be aimed at, with its name. One more draws nothing else for the others.
pub fn one_of_each(rng: &Rng, plan: &Plan) -> Vec<(&'static str, Plan)> {
    let aimed = |(name, aim): &(&'static str, Aim)| {
        let mut plan = plan.clone();
        aim(&mut rng.stream(name), &mut plan);
        plan.faults.sort_by_key(|(at, _)| *at);
        (*name, plan)
    };
    AIMS.iter().map(aimed).collect()
}

/// Commands of one client, or of many through one member.
fn many_at_once(rng: &mut RngStream, plan: &mut Plan) {
    (plan.one_session, plan.one_door) = if rng.chance(500) { (true, false) } else { (false, true) };
    (plan.clients, plan.pause) = (16, Duration::from_millis(30));
    (plan.operations, plan.keys, plan.foreign, plan.inside) = (plan.operations.max(80), 5, 0, 0);
    (plan.readers, plan.idle_permille) = (0, 0);
}

fn millis(rng: &mut RngStream, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.range(from, to.max(from + 1)))
}

fn add(rng: &mut RngStream, plan: &mut Plan, until: u64, fault: Fault) {
    plan.faults.push((millis(rng, 300, until), fault));
}

fn cut(rng: &mut RngStream) -> PowerCut {
    PowerCut { drop_permille: *rng.pick(&[0, 300, 1000]), tear_permille: 0 }
}

fn member(rng: &mut RngStream, plan: &Plan) -> Place {
    rng.range(0, plan.nodes as u64) as Place
}

/// Somebody who runs tasks, where others do, too.
fn runner(rng: &mut RngStream, plan: &mut Plan) -> Place {
    (plan.workers, plan.submitters) = (plan.workers.max(1), plan.submitters.max(1));
    let members = (1..=2).find(|place| plan.idle >> place & 1 == 0);
    if rng.chance(500) { members.unwrap_or(plan.nodes) } else { plan.nodes }
}

/// Clients that write and read a few keys all the time, some from one member alone.
fn look_closely(plan: &mut Plan) {
    (plan.readers, plan.readers_pause) = (1, Duration::from_millis(60));
    (plan.clients, plan.pause) = (plan.clients.max(3), Duration::from_millis(300));
    (plan.keys, plan.operations) = (plan.keys.min(2), plan.operations.max(40));
}

/// Reads under leases, with the clocks as uneven as they may be; again and again one of three members is brought to lead, and then
/// something happens to it and perhaps another, at so many milliseconds.
fn under_lease(
    rng: &mut RngStream,
    plan: &mut Plan,
    happens: impl Fn(&mut RngStream, [Place; 2], Duration) -> Vec<(u64, Fault)>,
) {
    run_elsewhere(plan);
    (plan.lease_reads, plan.nodes, plan.voters_max) = (true, 3, 3);
    // What is wrong is so for a moment: one key, read all the time, and written by many who pause for about as long as it takes to have
    // another leader. Whoever has asked the one before is stuck with it.
    (plan.clients, plan.pause, plan.operations, plan.idle_permille) = (16, Duration::from_millis(1_200), 60, 0);
    (plan.keys, plan.readers, plan.readers_pause) = (1, 1, Duration::from_millis(30));
    // Who knows one member alone would wait for it, time after time, when that is gone.
    (plan.foreign, plan.inside) = (0, 0);
    let leader = rng.range(0, 3) as Place;
    // What leases count on, whatever it is, and whatever the leader's own is.
    (plan.election_timeout, plan.patient) = (ELECTION_TIMEOUT_MIN, if rng.chance(500) { 1 << leader } else { 0 });
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (bound, always) = (CLOCK_DRIFT_PPM_MAX as i64, Duration::from_secs(60));
    if rng.chance(500) {
        // So that something is always under way; else all goes fast.
        plan.faults.push((Duration::ZERO, Fault::Far { delay: millis(rng, 25, 40), span: always }));
    }
    for (node, ppm) in [(leader, -bound), (one, bound), (other, bound)] {
        plan.faults.push((Duration::ZERO, Fault::Speed { node, ppm, span: always }));
    }
    let mut at = Duration::from_millis(500);
    for _ in 0..4 {
        plan.faults.push((at, Fault::Transfer { to: leader }));
        at += millis(rng, 3_000, 5_000);
        let span = millis(rng, 2_500, 4_000);
        let all = happens(rng, [leader, other], span);
        plan.faults.extend(all.into_iter().map(|(after, fault)| (at + Duration::from_millis(after), fault)));
        at += span + Duration::from_millis(2_500);
    }
}

/// Members run nothing.
fn run_elsewhere(plan: &mut Plan) {
    (plan.workers, plan.idle) = (plan.workers.max(1), (1 << plan.nodes) - 1);
}
