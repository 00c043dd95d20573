//! The copy of the sources in which every bug of `sim/mutants.toml` is planted, and the simulator that is built from it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cairn::sim::mutant::{self, Mutant};

/// What a build needs.
const PARTS: [&str; 8] = ["Cargo.toml", "Cargo.lock", "build.rs", "clippy.toml", ".cargo", "proto", "src", "sim"];

/// The package and its version, and the version that the copy has.
const OWN_VERSION: &str = concat!("name = \"cairn\"\nversion = \"", env!("CARGO_PKG_VERSION"), "\"");
const COPY_VERSION: &str = "name = \"cairn\"\nversion = \"0.0.0\"";

/// The name of that simulator.
const BINARY: &str = "sim-mutants";

/// Makes the copy, builds its simulator, and runs that with these arguments. Gives its exit status.
///
/// # Errors
/// What could not be done.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<i32, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), PathBuf::from);
    let copy = target.join("mutants");
    let mutants = mutant::all();
    fs::create_dir_all(&copy).map_err(|error| format!("make {}: {error}", copy.display()))?;
    for part in PARTS {
        copy_part(source, &copy, Path::new(part), &mutants)?;
    }
    eprintln!("building the simulator with {} planted bugs in {}", mutants.len(), copy.display());
    // Dependencies as tests have them, for that is how they are built already where this simulator is not a release.
    fs::create_dir_all(copy.join("tests"))
        .and_then(|()| fs::write(copy.join("tests/none.rs"), ""))
        .map_err(|error| format!("write a test that is none in {}: {error}", copy.display()))?;
    let (profile, place) = if cfg!(debug_assertions) { ("dev", "debug") } else { ("release", "release") };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--locked", "--features", "sim", "--bin", BINARY, "--profile", profile]);
    if cfg!(debug_assertions) {
        build.args(["--test", "none"]);
    }
    // Where the dependencies are built already.
    build.current_dir(&copy).arg("--target-dir").arg(&target);
    let built = build.output().map_err(|error| format!("run cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!(
            "the copy in {} does not build:\n{}",
            copy.display(),
            String::from_utf8_lossy(&built.stderr)
        ));
    }
    let simulator = target.join(place).join(BINARY);
    let status = Command::new(&simulator).args(arguments).status();
    let status = status.map_err(|error| format!("run {}: {error}", simulator.display()))?;
    status.code().ok_or_else(|| format!("the simulator ended with {status}"))
}

fn copy_part(source: &Path, copy: &Path, part: &Path, mutants: &[Mutant]) -> Result<(), String> {
    let (from, to) = (source.join(part), copy.join(part));
    let failed = |error: std::io::Error| format!("copy {}: {error}", from.display());
    if from.is_dir() {
        fs::create_dir_all(&to).map_err(failed)?;
        // What is no more must not stay behind.
        for entry in fs::read_dir(&to).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let (there, gone) = (from.join(&name), to.join(&name));
            match (there.exists() && there.is_dir() == gone.is_dir(), gone.is_dir()) {
                (true, _) => {}
                (false, true) => fs::remove_dir_all(&gone).map_err(failed)?,
                (false, false) => fs::remove_file(&gone).map_err(failed)?,
            }
        }
        for entry in fs::read_dir(&from).map_err(failed)? {
            copy_part(source, copy, &part.join(entry.map_err(failed)?.file_name()), mutants)?;
        }
        return Ok(());
    }
    let Ok(text) = fs::read_to_string(&from) else { return Ok(()) }; // not a source
    let name = part.to_string_lossy();
    let mut planted = mutant::plant(&name, &text, mutants)?;
    let swaps = [
        ("sim/mutant.rs", "pub const PLANTED: bool = false;", "pub const PLANTED: bool = true;".to_string()),
        ("Cargo.toml", "name = \"sim\"", format!("name = \"{BINARY}\"")),
        // Another version, so that what is built of it does not take the place of what is built of the sources themselves.
        ("Cargo.toml", OWN_VERSION, COPY_VERSION.into()),
        ("Cargo.lock", OWN_VERSION, COPY_VERSION.into()),
    ];
    for (_, old, new) in swaps.iter().filter(|(file, ..)| *file == name) {
        planted = planted.replacen(old, new, 1);
    }
    // What has not changed keeps its time, so that it is not built again.
    if fs::read_to_string(&to).is_ok_and(|before| before == planted) {
        return Ok(());
    }
    fs::write(&to, planted).map_err(failed)
}
