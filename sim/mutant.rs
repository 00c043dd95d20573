//! Planted bugs: a copy of the sources in which each stands behind a switch, and how long the seeds take to notice each.
//!
//! The bugs are data (`sim/mutants.toml`), so the product's sources know nothing of them. A simulator that is built from
//! the copy can switch one of them on for a run; one that is built from the sources themselves cannot.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::sim::fault::Class;

/// Whether this simulator was built from the copy.
pub const PLANTED: bool = false;

/// A bug that can be planted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// It is none: it must survive.
    #[serde(default)]
    pub control: bool,
    /// How the sources come to have it.
    pub edits: Vec<Edit>,
}

/// A change of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file, from the top.
    pub file: String,
    /// Text that occurs in it once.
    pub old: String,
    /// What takes its place; see the head of `sim/mutants.toml`.
    pub new: String,
}

#[derive(Deserialize)]
struct Catalogue {
    mutant: Vec<Mutant>,
}

/// All of them.
pub fn all() -> Vec<Mutant> {
    let catalogue: Catalogue = toml::from_str(include_str!("mutants.toml")).expect("a test parses it");
    catalogue.mutant
}

thread_local! {
    static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Switches a bug on for the run on this thread.
pub fn switch_on(name: Option<&'static str>) {
    ON.set(name);
}

/// Whether a bug is switched on in the run on this thread. Called by the copy.
pub fn is_on(name: &str) -> bool {
    ON.get() == Some(name)
}

/// The text of a file with the bugs of all `mutants` behind their switches.
///
/// # Errors
/// Which text does not occur once.
pub fn plant(file: &str, text: &str, mutants: &[Mutant]) -> Result<String, String> {
    let mut edits: Vec<(usize, &str, String)> = Vec::new();
    for mutant in mutants {
        let switch = format!("crate::sim::mutant::is_on({:?})", mutant.name);
        for Edit { old, new, .. } in mutant.edits.iter().filter(|edit| edit.file == file) {
            let mut found = text.match_indices(&**old);
            let (Some((at, _)), None) = (found.next(), found.next()) else {
                return Err(format!("{}: this does not occur once in {file}: {old:?}", mutant.name));
            };
            let new = match new.contains("ON") {
                true => words(new, &switch),
                false => format!("if {switch} {{ {new} }} else {{ {old} }}"),
            };
            edits.push((at, old, new));
        }
    }
    edits.sort_by_key(|(at, ..)| *at);
    let (mut planted, mut done) = (String::new(), 0);
    for (at, old, new) in edits {
        if at < done {
            return Err(format!("{file}: two edits meet at {old:?}"));
        }
        planted.push_str(&text[done..at]);
        planted.push_str(&new);
        done = at + old.len();
    }
    planted.push_str(&text[done..]);
    Ok(planted)
}

/// Puts the switch in the place of each word ON.
fn words(text: &str, switch: &str) -> String {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("ON") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let whole = !before.ends_with(part) && !after.starts_with(part);
        out.push_str(before);
        out.push_str(if whole { switch } else { "ON" });
        rest = after;
    }
    out + rest
}

/// What became of a mutant.
#[derive(Clone, Debug)]
pub struct Fate {
    /// Seeds that were run.
    pub seeds: u64,
    /// Of the seeds that noticed it: how many were run since the one before, and what noticed.
    pub kills: Vec<(u64, String)>,
    /// Without each class of faults, how many seeds it took until the first noticed; `None` if none did.
    pub without: Vec<(Class, Option<u64>)>,
}

impl Fate {
    /// Seeds until it is noticed, at the median.
    pub fn median(&self) -> Option<u64> {
        let mut gaps: Vec<u64> = self.kills.iter().map(|(gap, _)| *gap).collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied()
    }

    /// What noticed it, the most frequent first.
    pub fn oracles(&self) -> Vec<&str> {
        let mut counts: Vec<(usize, &str)> = Vec::new();
        for (_, oracle) in &self.kills {
            match counts.iter_mut().find(|(_, other)| other == oracle) {
                Some((count, _)) => *count += 1,
                None => counts.push((1, oracle)),
            }
        }
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        counts.into_iter().map(|(_, oracle)| oracle).collect()
    }
}

/// How far to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The first seed.
    pub from: u64,
    /// Seeds of a mutant at most.
    pub seeds: u64,
    /// Seeds that notice it after which it counts as known.
    pub kills: usize,
    /// Seeds without a class of faults at most; 0 leaves that out.
    pub ablation: u64,
    /// Runs at once.
    pub jobs: usize,
}

/// Runs a seed with the mutant switched on, perhaps without a class of faults, and says what noticed it.
pub type Notices<'a> = &'a (dyn Fn(u64, Option<Class>) -> Result<Option<String>, String> + Sync);

/// Looks for seeds that notice a mutant.
///
/// # Errors
/// Those of `notices`.
pub fn try_mutant(control: bool, effort: Effort, notices: Notices<'_>) -> Result<Fate, String> {
    let kills = if control { usize::MAX } else { effort.kills };
    let (seeds, found) = search(notices, None, (effort.from, effort.seeds), kills, effort.jobs)?;
    let mut last = 0;
    let kills: Vec<(u64, String)> = found
        .into_iter()
        .map(|(seed, oracle)| {
            let gap = seed + 1 - last;
            last = seed + 1;
            (gap, oracle)
        })
        .collect();
    let mut fate = Fate { seeds, kills, without: Vec::new() };
    if let Some(median) = fate.median().filter(|_| effort.ablation > 0) {
        let most = effort.ablation.min(10 * median);
        for class in Class::ALL {
            let (_, found) = search(notices, Some(class), (effort.from, most), 1, effort.jobs)?;
            fate.without.push((class, found.first().map(|(at, _)| at + 1)));
        }
    }
    Ok(fate)
}

/// Runs seeds in order until so many have noticed: how many were run, and which noticed, counted from the first.
fn search(
    notices: Notices<'_>,
    without: Option<Class>,
    (from, count): (u64, u64),
    kills: usize,
    jobs: usize,
) -> Result<(u64, Vec<(u64, String)>), String> {
    let next = AtomicU64::new(0);
    let found: Mutex<Result<Vec<(u64, String)>, String>> = Mutex::new(Ok(Vec::new()));
    let enough = || found.lock().unwrap().as_ref().map_or(true, |found| found.len() >= kills);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !enough() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let noticed = notices(from + number, without);
                    let mut found = found.lock().unwrap();
                    match (noticed, &mut *found) {
                        (Ok(Some(oracle)), Ok(found)) => found.push((number, oracle)),
                        (Err(why), found) => *found = Err(why),
                        (Ok(_), _) => {}
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap()?;
    found.sort_unstable();
    Ok((next.into_inner().min(count), found))
}

/// The rows of a table that was written before, by the names of the bugs.
pub fn rows(table: &str) -> BTreeMap<String, String> {
    let named = |line: &str| Some((line.strip_prefix("| ")?.split(" |").next()?.to_owned(), line.to_owned()));
    table.lines().filter_map(named).filter(|(name, _)| name != "bug").collect()
}

/// The row of a bug.
pub fn row(mutant: &Mutant, fate: &Fate) -> String {
    let seeds = match fate.median() {
        Some(median) => median.to_string(),
        None => format!("> {}", fate.seeds),
    };
    let without = Class::ALL.iter().map(|class| {
        match fate.without.iter().find(|(other, _)| other == class).map(|(_, first)| first) {
            None => String::new(),
            Some(None) => "–".into(),
            Some(Some(first)) => first.to_string(),
        }
    });
    let (oracles, without) = (fate.oracles().join(", "), without.collect::<Vec<_>>().join(" | "));
    format!("| {} | {} | {seeds} | {oracles} | {without} |", mutant.name, mutant.what)
}

/// The median number of seeds that a row tells of; nothing if none noticed.
fn seeds_of(row: &str) -> Option<u64> {
    row.split(" | ").nth(2)?.trim().parse().ok()
}

/// The table of all bugs that there are rows of, as it stands in `sim/MUTANTS.md`.
pub fn table(mutants: &[Mutant], rows: &BTreeMap<String, String>) -> String {
    let mut out = String::from(
        "# Planted bugs\n\nWritten by `sim mutants`, some at a time. *Seeds* is the median number of seeds until one notices the bug (> n: \
         none of n\ndid). Three such seeds were looked for in 400, and where these brought none, one in 2000. The columns to the right say \
         how many it\ntook without a class of faults (– : none of ten times the median; empty: not tried); what is not much greater does \
         not need\nthat class. The last, whose names begin with `control`, are no bugs, and must survive.\n\n",
    );
    let found: Vec<(&Mutant, &String)> =
        mutants.iter().filter_map(|mutant| Some((mutant, rows.get(&mutant.name)?))).collect();
    let (controls, bugs): (Vec<_>, Vec<_>) = found.iter().partition(|(mutant, _)| mutant.control);
    let mut medians: Vec<u64> = bugs.iter().filter_map(|(_, row)| seeds_of(row)).collect();
    medians.sort_unstable();
    let survived = controls.iter().filter(|(_, row)| seeds_of(row).is_none()).count();
    let _ = writeln!(
        out,
        "{} of {} bugs are noticed, at the median after {} seeds; {survived} of {} controls survive.\n",
        medians.len(),
        bugs.len(),
        medians.get(medians.len() / 2).copied().unwrap_or_default(),
        controls.len()
    );
    let classes: Vec<String> = Class::ALL.iter().map(|class| format!("no {class:?}").to_lowercase()).collect();
    let _ = writeln!(out, "| bug | what is wrong | seeds | noticed by | {} |", classes.join(" | "));
    let _ = writeln!(out, "|---|---|--:|---|{}", "--:|".repeat(classes.len()));
    found.iter().for_each(|(_, row)| out += &format!("{row}\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_table_stay() {
        let bug =
            |name: &str, control| Mutant { name: name.into(), what: "all of it".into(), control, edits: Vec::new() };
        let mutants = [bug("one", false), bug("two", false), bug("control-one", true)];
        let fate = |kills| Fate { seeds: 9, kills, without: vec![(Class::ALL[0], None)] };
        let noticed = row(&mutants[0], &fate(vec![(3, "an oracle".into())]));
        let rows_now: BTreeMap<String, String> = [
            ("one".to_owned(), noticed),
            ("two".to_owned(), row(&mutants[1], &fate(Vec::new()))),
            ("control-one".to_owned(), row(&mutants[2], &fate(Vec::new()))),
            ("is no more".to_owned(), "| is no more | | | |".to_owned()),
        ]
        .into();
        let text = table(&mutants, &rows_now);
        assert!(
            text.contains("1 of 2 bugs are noticed, at the median after 3 seeds; 1 of 1 controls survive."),
            "{text}"
        );
        let kept = rows(&text);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["control-one", "one", "two"]);
        assert_eq!(table(&mutants, &kept), text, "written again it is the same");
    }
}
