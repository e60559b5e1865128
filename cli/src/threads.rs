//! How many threads are worth using.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical cores this process may use: hardware threads of one core share its vector units, so that a second one does
/// not compute faster. Bounded by what the operating system grants (affinity, quotas).
pub(crate) fn physical_cores() -> usize {
    let granted = std::thread::available_parallelism().map_or(1, |n| n.get());
    cores_allowed(Path::new("/proc/self/status"), Path::new("/sys/devices/system/cpu"))
        .map_or(granted, |cores| cores.clamp(1, granted))
}

/// Linux: the distinct cores among the CPUs of the affinity mask; `None` where the system does not say.
fn cores_allowed(status: &Path, cpus: &Path) -> Option<usize> {
    let status = std::fs::read_to_string(status).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let core_of = |cpu: usize| {
        let siblings = cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        std::fs::read_to_string(siblings).ok().and_then(|list| parse_list(&list)?.into_iter().next())
    };
    let cores: Option<BTreeSet<usize>> = parse_list(allowed)?.into_iter().map(core_of).collect();
    cores.map(|cores| cores.len())
}

/// A list as the kernel writes it: `0-3,8`.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        out.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        let folder = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,4"), (1, "1,5"), (4, "0,4"), (5, "1,5")] {
            let topology = folder.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
        }
        let status = folder.path().join("status");
        for (allowed, cores) in [("0-1,4-5", Some(2)), ("0,4", Some(1)), ("0-2", None)] {
            std::fs::write(&status, format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n")).unwrap();
            assert_eq!(cores_allowed(&status, folder.path()), cores, "{allowed}");
        }
    }
}
