//! Whether there is any GPU but a software one, remembered from one start to the next.
//!
//! To ask Vulkan for its adapters loads every driver that is installed, which takes most of a second where they bring a
//! compiler each. Where the system shows no device of a GPU, the answer holds as long as the drivers are the same. Where it
//! shows one, the drivers are always asked: whether they find it depends on rights, on kernel modules, and on more that may
//! change without a trace. Only Linux is asked this way; elsewhere asking is quick.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use tandem_engine::placement::adapter;

/// The file's name in the folder of what can be made again.
const FILE: &str = "adapters.txt";
/// What it begins with, with and without a GPU; a new layout gets new words.
const SOFTWARE_ONLY: &str = "no GPU but software, version 2\n";
const SOME: &str = "a GPU, version 2\n";
/// What the names of devices of GPUs that are no `/dev/dri` begin with: NVIDIA, AMD compute, WSL, and those of phones and
/// single-board computers.
const DEVICES: [&str; 10] = ["nvidia", "nvhost", "nvmap", "nvgpu", "kfd", "dxg", "mali", "kgsl", "pvr", "galcore"];

/// Whether it is certain that there is no GPU, or only a software one. `folder` is where the answer is kept; where it is
/// not there yet, the drivers are asked. Without a folder nothing is certain.
pub(crate) fn only_software(folder: Option<&Path>) -> bool {
    let Some((folder, system)) = folder.zip(System::here()) else { return false };
    if system.shows_a_gpu() {
        return false;
    }
    let ask = || {
        let found = adapter::adapters();
        (!found.is_empty()).then(|| found.iter().all(|adapter| adapter.software))
    };
    recall(&folder.join(FILE), &system.fingerprint(), ask)
}

/// The answer kept in a file for this fingerprint; `ask` makes it where there is none. Where nobody answers there is no GPU,
/// and nothing is kept: it takes no time to ask again.
fn recall(file: &Path, fingerprint: &str, ask: impl FnOnce() -> Option<bool>) -> bool {
    let text = |software_only| [if software_only { SOFTWARE_ONLY } else { SOME }, fingerprint].concat();
    let known = std::fs::read_to_string(file).ok();
    match known {
        Some(known) if known == text(true) => true,
        Some(known) if known == text(false) => false,
        Some(_) | None => {
            let Some(answer) = ask() else { return true };
            // Without the file they are asked again the next time.
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(file, text(answer));
            answer
        }
    }
}

/// What the answer depends on. The variables are those that the Vulkan loader reads.
struct System {
    /// Its own, and those of where it looks.
    variables: Vec<(OsString, OsString)>,
    /// Folders with a manifest for each driver.
    folders: Vec<PathBuf>,
    /// Manifests named one by one.
    manifests: Vec<PathBuf>,
    /// Where the system shows its devices.
    devices: PathBuf,
}

impl System {
    /// This one; `None` where drivers are not found this way.
    fn here() -> Option<System> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        let is_asked =
            |name: &OsString| name.as_encoded_bytes().starts_with(b"VK_") || FOLDERS.contains(&name.to_str());
        let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| is_asked(name)).collect();
        variables.sort();
        let folders = folders(&variables);
        let manifests = variables.iter().filter(|(name, _)| FILES.contains(&name.to_str()));
        let manifests = manifests.flat_map(|(_, value)| std::env::split_paths(value)).collect();
        Some(System { variables, folders, manifests, devices: PathBuf::from("/dev") })
    }

    fn fingerprint(&self) -> String {
        let mut out = format!("{:?}\n", self.variables);
        let mut manifests: Vec<PathBuf> = self.manifests.clone();
        for folder in &self.folders {
            manifests.extend(names(folder).into_iter().map(|name| folder.join(name)));
        }
        for path in manifests {
            let about = std::fs::metadata(&path).and_then(|file| Ok((file.len(), file.modified()?))).ok();
            let _ = writeln!(out, "{path:?} {about:?}");
        }
        out
    }

    /// Whether there is any device of a GPU, be it that nobody may use it.
    fn shows_a_gpu(&self) -> bool {
        let any = |folder: &Path, starts: &[&str]| {
            let begins = |name: OsString| starts.iter().any(|s| name.as_encoded_bytes().starts_with(s.as_bytes()));
            names(folder).into_iter().any(begins)
        };
        any(&self.devices, &DEVICES) || any(&self.devices.join("dri"), &["renderD"])
    }
}

/// Variables that name folders.
const FOLDERS: [Option<&str>; 5] =
    [Some("HOME"), Some("XDG_CONFIG_HOME"), Some("XDG_CONFIG_DIRS"), Some("XDG_DATA_HOME"), Some("XDG_DATA_DIRS")];
/// Variables that name manifests, or folders of them.
const FILES: [Option<&str>; 3] = [Some("VK_DRIVER_FILES"), Some("VK_ICD_FILENAMES"), Some("VK_ADD_DRIVER_FILES")];

/// Where the Vulkan loader looks for manifests on Linux
/// (<https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderDriverInterface.md>, "Linux driver discovery").
fn folders(variables: &[(OsString, OsString)]) -> Vec<PathBuf> {
    let value = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value);
    let home = |at: &str| value("HOME").map(|home| Path::new(home).join(at));
    let one = |name: &str, otherwise: &str| value(name).map(PathBuf::from).or_else(|| home(otherwise));
    let many = |name: &str, otherwise: &str| -> Vec<PathBuf> {
        value(name).map_or_else(|| std::env::split_paths(otherwise).collect(), |v| std::env::split_paths(v).collect())
    };
    let mut bases: Vec<PathBuf> = one("XDG_CONFIG_HOME", ".config").into_iter().collect();
    bases.extend(many("XDG_CONFIG_DIRS", "/etc/xdg"));
    bases.extend(["/usr/local/etc", "/etc"].map(PathBuf::from));
    bases.extend(one("XDG_DATA_HOME", ".local/share"));
    bases.extend(many("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    // The two that hold drivers whatever the variables say.
    bases.extend(["/usr/local/share", "/usr/share"].map(PathBuf::from));
    let mut seen = BTreeSet::new();
    bases.retain(|base| seen.insert(base.clone()));
    bases.into_iter().map(|base| base.join("vulkan/icd.d")).collect()
}

/// Names in a folder, in order; none where it cannot be read.
fn names(folder: &Path) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_kept_until_the_system_changes() {
        let folder = std::env::temp_dir().join(format!("tandem-known-{}", std::process::id()));
        let file = folder.join("cache").join(FILE);
        let never = || -> Option<bool> { panic!("asked again") };
        for answer in [true, false] {
            let system = format!("system {answer}");
            assert_eq!(recall(&file, &system, || Some(answer)), answer);
            assert_eq!(recall(&file, &system, never), answer);
        }
        assert!(recall(&file, "nobody answers", || None));
        assert!(!recall(&file, "nobody answers", || Some(false)));
        std::fs::write(&file, "damaged").unwrap();
        assert!(recall(&file, "system true", || Some(true)));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn drivers_are_part_of_the_fingerprint_and_devices_speak_for_themselves() {
        let root = std::env::temp_dir().join(format!("tandem-system-{}", std::process::id()));
        let drivers = root.join("icd.d");
        std::fs::create_dir_all(&drivers).unwrap();
        std::fs::create_dir_all(root.join("dev/dri")).unwrap();
        let system = System {
            variables: vec![],
            folders: vec![drivers.clone()],
            manifests: vec![root.join("one.json")],
            devices: root.join("dev"),
        };
        let mut seen = vec![system.fingerprint()];
        for file in ["icd.d/a.json", "icd.d/b.json", "one.json"] {
            std::fs::write(root.join(file), file).unwrap();
            seen.push(system.fingerprint());
        }
        std::fs::write(drivers.join("a.json"), "a longer manifest").unwrap();
        seen.push(system.fingerprint());
        let different: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(different.len(), seen.len());
        // A screen without anything to compute with.
        for other in ["dev/tty7", "dev/dri/card0"] {
            std::fs::write(root.join(other), "").unwrap();
            assert!(!system.shows_a_gpu());
        }
        for device in ["dev/nvidia0", "dev/dri/renderD128"] {
            std::fs::write(root.join(device), "").unwrap();
            assert!(system.shows_a_gpu(), "{device}");
            std::fs::remove_file(root.join(device)).unwrap();
        }
        std::fs::remove_dir_all(root).unwrap();
    }
}
