//! What the CPU is, for people and for telling machines apart.

use super::IsaLevel;

/// Facts about this machine's CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuInfo {
    /// The maker's name for it.
    pub name: String,
    /// Vector instructions that kernels use, of those that it has.
    pub features: Vec<&'static str>,
    /// The instruction set that kernels are chosen for.
    pub isa: IsaLevel,
    /// Bytes of memory, where the system tells.
    pub memory: Option<u64>,
}

impl CpuInfo {
    /// Asks the CPU and the system.
    pub fn new() -> CpuInfo {
        CpuInfo { name: CpuInfo::name(), features: features(), isa: IsaLevel::best(None), memory: memory() }
    }

    /// The maker's name for the CPU; the architecture's where the system does not tell.
    pub fn name() -> String {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        field(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH).to_owned()
    }
}

impl Default for CpuInfo {
    fn default() -> CpuInfo {
        CpuInfo::new()
    }
}

/// The value of `key : value` in a text as Linux writes it.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).find(|value| !value.is_empty())
}

fn memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = field(&meminfo, "MemTotal")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
    ];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_system_s_texts() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\n\nMemTotal:       24689764 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("24689764 kB"));
        assert_eq!(field(text, "MemFree"), None);
    }
}
