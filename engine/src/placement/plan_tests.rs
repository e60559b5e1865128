//! The planner, for machines that need not exist: adapters and measured figures are made up here. What blocks take on a
//! GPU is worked out without one.

use proptest::prelude::*;

use super::plan::Planner;
use super::probe::Probe;
use super::*;
use crate::error::{Error, Result};
use crate::model::LoadOptions;

const N_LAYER: usize = 6;

fn adapter(software: bool) -> Adapter {
    Adapter {
        index: 0,
        name: "a GPU".to_owned(),
        api: "Vulkan".to_owned(),
        driver: "a driver".to_owned(),
        kind: "discrete GPU",
        software,
        unusable: None,
        memory: None,
        features: vec![],
        limits: vec![],
        max_binding: 1 << 27,
    }
}

fn speed(rate: f64, visit: f64) -> DeviceSpeed {
    // The least working set of a CPU, and that of GPUs.
    let names = ["F16 64x64 of 32 MiB", "F16 64x64 of 128 MiB", "head F16 64x1 of 32 MiB", "head F16 64x1 of 128 MiB"];
    let rates = names.into_iter().chain(["cache f16"]).map(|name| (name.to_owned(), rate)).collect();
    DeviceSpeed { visit, step: 1e-6, product: 0.0, transfer: 1e-9, rates }
}

/// What a planner is asked, and the devices' figures: bytes per second and seconds per visit.
struct Case {
    wanted: Wanted,
    software: bool,
    cpu: f64,
    gpu: f64,
    visit: f64,
}

impl Case {
    fn new(layers: GpuLayers) -> Case {
        let wanted = Wanted { layers, ..Wanted::default() };
        Case { wanted, software: false, cpu: 1e9, gpu: 1e10, visit: 1e-5 }
    }

    /// Gives `work` the planner and the figures.
    fn plan<T>(&self, work: impl FnOnce(&Planner<'_>, &mut Speeds<'_>) -> T) -> T {
        let probe = Probe::model(N_LAYER).unwrap();
        let options =
            LoadOptions { wanted: self.wanted.clone(), n_ctx: Some(256), threads: Some(2), ..LoadOptions::default() };
        let adapter = adapter(self.software);
        let planner = Planner::new(&probe.gguf, &probe.program, &options, Some(&adapter));
        let mut speeds = Speeds::default();
        speeds.table.insert(planner.key(Device::Cpu), speed(self.cpu, 1e-6));
        speeds.table.insert(planner.key(Device::Gpu), speed(self.gpu, self.visit));
        work(&planner, &mut speeds)
    }

    /// What is chosen, or why nothing is.
    fn chosen(&self) -> Result<(Placement, Ledger)> {
        self.plan(|planner, speeds| planner.choose(speeds, &mut Vec::new()))
    }
}

/// Bytes of the last `n` layers on the GPU.
fn bytes_of_layers(n: usize) -> u64 {
    Case::new(GpuLayers::Count(n)).chosen().unwrap().1.on(Device::Gpu).total()
}

#[test]
fn a_fast_gpu_gets_all_and_a_slow_one_nothing() {
    let layers = |case: &Case| case.chosen().unwrap().0;
    let program = Probe::model(N_LAYER).unwrap().program;
    assert_eq!(layers(&Case::new(GpuLayers::Auto)), Placement::last_layers(&program, N_LAYER + 1));
    let slow = Case { gpu: 1e8, ..Case::new(GpuLayers::Auto) };
    assert_eq!(layers(&slow), Placement::cpu(&program));
    // What a visit costs outweighs what it saves.
    let far = Case { visit: 1.0, ..Case::new(GpuLayers::Auto) };
    assert_eq!(layers(&far), Placement::cpu(&program));
    let software = Case { software: true, ..Case::new(GpuLayers::Auto) };
    assert_eq!(layers(&software), Placement::cpu(&program));
}

#[test]
fn rules_hold_whatever_auto_chooses() {
    let mut case = Case::new(GpuLayers::Auto);
    case.wanted.rules = "ffn.2-3=cpu, output=cpu".parse().unwrap();
    let (placement, _) = case.chosen().unwrap();
    assert_eq!(placement.parts_on(&Probe::model(N_LAYER).unwrap().program, Device::Cpu), "embed, ffn.2-3, output");
}

#[test]
fn rules_that_change_nothing_are_said() {
    let mut case = Case::new(GpuLayers::All);
    case.wanted.cpu_moe = true;
    let mut notes = Vec::new();
    case.plan(|planner, speeds| planner.choose(speeds, &mut notes)).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("experts=cpu"), "{notes:?}");
    case.wanted.strict = true;
    let error = case.chosen().unwrap_err().to_string();
    assert!(error.contains("experts=cpu") && error.contains("--strict-placement"), "{error}");
}

#[test]
fn a_software_adapter_that_is_named_is_not_left_out_silently() {
    let mut case = Case { software: true, ..Case::new(GpuLayers::Auto) };
    case.wanted.device = Some("0".to_owned());
    let mut notes = Vec::new();
    case.plan(|planner, speeds| planner.choose(speeds, &mut notes)).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("-ngl auto"), "{notes:?}");
    case.wanted.strict = true;
    assert!(matches!(case.chosen(), Err(Error::Placement(_))));
}

#[test]
fn names_of_adapters() {
    let named = |names: &[&str]| -> Vec<Adapter> {
        let adapter = |(index, name): (usize, &&str)| Adapter { index, name: (*name).to_owned(), ..adapter(false) };
        names.iter().enumerate().map(adapter).collect()
    };
    let list = named(&["Fast 3000", "Fast 4000", "llvmpipe"]);
    let select = |wanted| adapter::select(&list, wanted).map(|found| found.map(|a| a.index));
    assert_eq!(select(None).unwrap(), Some(0));
    assert_eq!(select(Some("PIPE")).unwrap(), Some(2));
    assert_eq!(select(Some("1")).unwrap(), Some(1));
    assert!(select(Some("4000")).unwrap_err().to_string().contains("no GPU is `4000`"));
    assert_eq!(select(Some("t 4")).unwrap(), Some(1));
    assert!(select(Some("fast")).unwrap_err().to_string().contains("several"));
    assert!(adapter::select(&[], Some("fast")).unwrap_err().to_string().contains("there is none"));
    let broken = vec![
        Adapter { unusable: Some("too old".to_owned()), ..adapter(false) },
        Adapter { index: 1, ..adapter(false) },
    ];
    assert_eq!(adapter::select(&broken, None).unwrap().unwrap().unusable, None);
    assert!(adapter::select(&broken, Some("0")).unwrap_err().to_string().contains("too old"));
}

proptest! {
    /// `auto` stays within the budget, and no number of layers that fits is faster.
    #[test]
    fn auto_fits_and_nothing_that_fits_is_faster(
        share in 0.0f64..1.3,
        cpu in 1e8f64..1e11,
        gpu in 1e8f64..1e11,
        visit in 1e-6f64..1e-3,
    ) {
        let budget = (bytes_of_layers(N_LAYER + 1) as f64 * share) as u64;
        let mut case = Case { cpu, gpu, visit, ..Case::new(GpuLayers::Auto) };
        case.wanted.vram_budget = Some(budget);
        case.plan(|planner, speeds| {
            let (placement, ledger) = planner.choose(speeds, &mut Vec::new()).unwrap();
            prop_assert!(ledger.on(Device::Gpu).total() <= budget);
            let seconds = |placement: &Placement| planner.predict(placement, speeds).unwrap().seconds(0);
            let chosen = seconds(&placement);
            for n in (0..=N_LAYER + 1).filter(|n| bytes_of_layers(*n) <= budget) {
                let other = Placement::last_layers(planner.program, n);
                prop_assert!(chosen <= seconds(&other), "{n} layers are faster than {placement:?}");
            }
            Ok(())
        })?;
    }

    /// A number of layers is placed if it fits; if not, the error names the largest one that does.
    #[test]
    fn a_number_of_layers_fits_or_the_error_says_which_does(n in 1..N_LAYER + 2, share in 0.0f64..1.3) {
        let budget = (bytes_of_layers(N_LAYER + 1) as f64 * share) as u64;
        let mut case = Case::new(GpuLayers::Count(n));
        case.wanted.vram_budget = Some(budget);
        let most = (0..=N_LAYER + 1).rev().find(|n| bytes_of_layers(*n) <= budget).unwrap();
        match case.chosen() {
            Ok((placement, _)) => {
                prop_assert!(n <= most);
                prop_assert_eq!(placement, case.plan(|planner, _| Placement::last_layers(planner.program, n)));
            }
            Err(Error::Placement(message)) => {
                prop_assert!(n > most);
                let advice = if most == 0 { "not even -ngl 1".to_owned() } else { format!("-ngl {most} fits") };
                prop_assert!(message.contains(&advice), "{message}");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
