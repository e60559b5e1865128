//! Every variant of every kernel: composed, parsed and validated as wgpu would, without a GPU; and what the host binds and
//! passes compared with what the shader declares.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};
use tandem_shaders::{
    Acts, BestStep, Cache, Decode, FORMATS, GROUP, HeadShape, Kernel, Operands, Pairing, SOURCES, params,
};

/// What wgpu asks naga to check for a device with the features that the backend asks for, as far as a kernel is told that it
/// has them.
fn capabilities(kernel: &Kernel) -> Capabilities {
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let cooperative = matches!(kernel, Kernel::CoopMat { .. });
    capabilities.set(Capabilities::SUBGROUP, cooperative || matches!(kernel, Kernel::MatVec { subgroups: true, .. }));
    capabilities.set(Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX, cooperative);
    capabilities
}

fn shapes() -> Vec<HeadShape> {
    let sizes = [(8, 1), (10, 3), (64, 4), (80, 9), (128, 8), (256, 1), (1024, 2)];
    sizes.map(|(head_dim, group)| HeadShape { head_dim, group }).to_vec()
}

fn operands() -> Vec<Operands> {
    let both = |f: &tandem_shaders::Format| {
        [Acts::F32, Acts::Int8, Acts::Int8Twice]
            .into_iter()
            .filter(|acts| *acts == Acts::F32 || f.decode == Decode::Quants)
            .map(|acts| Operands { ty: f.ty, acts })
            .collect::<Vec<_>>()
    };
    FORMATS.iter().flat_map(both).collect()
}

/// All variants.
fn variants() -> Vec<Kernel> {
    let bools = [false, true];
    let mut all = vec![Kernel::Combine, Kernel::SigmoidGate];
    all.extend(BestStep::ALL.map(Kernel::Best));
    for n_expert in [1, 7, 128, 512] {
        all.extend([Kernel::Route { n_expert }, Kernel::Group { n_expert }]);
    }
    all.extend(bools.map(|twice| Kernel::Quantize { twice }));
    for acts in [Acts::F32, Acts::Int8, Acts::Int8Twice] {
        all.extend(bools.map(|in_place| Kernel::Norm { in_place, acts }));
    }
    for quantize in bools {
        all.extend(bools.map(|gelu| Kernel::Glu { gelu, quantize }));
    }
    for shape in shapes() {
        let whole = shape.head_dim.is_multiple_of(GROUP as u32);
        let quantized = bools.into_iter().filter(|quantize| whole || !quantize);
        all.extend(quantized.clone().map(|quantize| Kernel::Merge { shape, quantize }));
        for cache in Cache::ALL {
            for rows in (0..5).map(|log| 1 << log).filter(|rows| *rows <= shape.max_rows()) {
                let direct = quantized.clone();
                all.extend(direct.map(|quantize| Kernel::Attend { shape, cache, rows, shares: false, quantize }));
                all.push(Kernel::Attend { shape, cache, rows, shares: true, quantize: false });
            }
        }
        for norm in bools {
            for rope in [None, Some(Pairing::Normal), Some(Pairing::NeoX)] {
                let stores = [None].into_iter().chain(Cache::ALL.map(Some));
                all.extend(stores.map(|store| Kernel::Heads { shape, norm, rope, store }));
            }
        }
    }
    all.extend(FORMATS.iter().map(|f| Kernel::Peak { ty: f.ty }));
    for operands in operands() {
        for experts in bools {
            let threads = [8, 32, 64].map(Kernel::coop_threads).into_iter().filter(|_| operands.fit_coop());
            all.extend(threads.map(|threads| Kernel::CoopMat { operands, threads, experts }));
            all.extend(bools.map(|wide| Kernel::MatMat { operands, wide, experts }));
        }
        for (subgroups, threads) in bools.into_iter().flat_map(|s| [8, 32, 64, 128].map(|threads| (s, threads))) {
            for (cols, experts) in [(1, false), (4, false), (1, true)] {
                all.push(Kernel::MatVec { operands, threads, cols, subgroups, experts });
            }
        }
    }
    all
}

/// Parses and validates; messages name the line of the composed text.
fn check(kernel: &Kernel) -> (Module, ModuleInfo) {
    let text = kernel.source().unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
    let module =
        naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{kernel:?}:\n{}", e.emit_to_string(&text)));
    let info = Validator::new(ValidationFlags::all(), capabilities(kernel))
        .validate(&module)
        .unwrap_or_else(|e| panic!("{kernel:?}:\n{}", e.emit_to_string(&text)));
    (module, info)
}

/// Translates to SPIR-V, and asks for nothing but what Vulkan drivers with cooperative matrices have.
fn translate(kernel: &Kernel, module: &Module, info: &ModuleInfo) {
    use naga::back::spv::{Capability, Options, write_vec};
    let allowed = [
        Capability::Shader,
        Capability::Int8,
        Capability::Float16,
        Capability::StorageBuffer16BitAccess,
        Capability::UniformAndStorageBuffer16BitAccess,
        Capability::GroupNonUniform,
        Capability::VulkanMemoryModel,
        Capability::CooperativeMatrixKHR,
    ];
    let options =
        Options { lang_version: (1, 4), capabilities: Some(allowed.into_iter().collect()), ..Options::default() };
    let words = write_vec(module, info, &options, None).unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
    assert_eq!(words[0], 0x0723_0203, "{kernel:?}: SPIR-V's magic number");
}

/// Size and field names of the immediate values that a shader declares.
fn immediates(module: &Module) -> (u32, Vec<String>) {
    let (_, global) = module.global_variables.iter().find(|(_, g)| g.space == AddressSpace::Immediate).unwrap();
    match &module.types[global.ty].inner {
        TypeInner::Struct { members, span } => (*span, members.iter().map(|m| m.name.clone().unwrap()).collect()),
        other => panic!("{other:?}"),
    }
}

fn declared(kernel: &Kernel) -> (usize, &'static [&'static str]) {
    use params::*;
    match kernel {
        Kernel::Norm { .. } => (size_of::<NormParams>(), NormParams::FIELDS),
        Kernel::Quantize { .. } => (size_of::<QuantizeParams>(), QuantizeParams::FIELDS),
        Kernel::Glu { .. } => (size_of::<GluParams>(), GluParams::FIELDS),
        Kernel::Heads { .. } => (size_of::<HeadsParams>(), HeadsParams::FIELDS),
        Kernel::Attend { .. } => (size_of::<AttendParams>(), AttendParams::FIELDS),
        Kernel::Merge { .. } => (size_of::<MergeParams>(), MergeParams::FIELDS),
        Kernel::Best(_) => (size_of::<BestParams>(), BestParams::FIELDS),
        Kernel::Route { .. } => (size_of::<RouteParams>(), RouteParams::FIELDS),
        Kernel::Group { .. } => (size_of::<GroupParams>(), GroupParams::FIELDS),
        Kernel::Combine => (size_of::<CombineParams>(), CombineParams::FIELDS),
        Kernel::SigmoidGate => (size_of::<SigmoidGateParams>(), SigmoidGateParams::FIELDS),
        Kernel::MatVec { .. } | Kernel::MatMat { .. } | Kernel::CoopMat { .. } | Kernel::Peak { .. } => {
            (size_of::<ProductParams>(), ProductParams::FIELDS)
        }
    }
}

#[test]
fn every_variant_is_valid_and_is_what_the_host_takes_it_for() {
    let all = variants();
    for kernel in &all {
        let (module, info) = check(kernel);
        if matches!(kernel, Kernel::CoopMat { .. }) {
            translate(kernel, &module, &info);
        }
        let (size, fields) = immediates(&module);
        let (host_size, host_fields) = declared(kernel);
        assert_eq!(size as usize, host_size, "{kernel:?}");
        assert_eq!(fields, host_fields, "{kernel:?}");

        let entry = &module.entry_points[0];
        assert_eq!((entry.name.as_str(), entry.workgroup_size), ("main", [kernel.threads(), 1, 1]), "{kernel:?}");
        let bindings = kernel.bindings();
        let mut memory = 0;
        for (handle, global) in module.global_variables.iter() {
            let used = !info.get_entry_point(0)[handle].is_empty();
            match (global.space, &global.binding) {
                (AddressSpace::Storage { access }, Some(place)) if used => {
                    let bound = bindings.iter().find(|b| b.number == place.binding);
                    let read_only = !access.contains(StorageAccess::STORE);
                    assert_eq!(bound.map(|b| b.read_only), Some(read_only), "{kernel:?}: {:?}", global.name);
                }
                (AddressSpace::WorkGroup, _) if used => {
                    memory += module.types[global.ty].inner.size(module.to_ctx());
                }
                _ => {}
            }
        }
        // What every adapter offers.
        assert!(memory <= 16384, "{kernel:?} takes {memory} bytes of workgroup memory");
    }
    println!("{} variants", all.len());
}

#[test]
fn every_file_is_a_source() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("wgsl");
    let mut folders = vec![root.clone()];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            assert!(SOURCES.iter().any(|(n, _)| *n == name), "{name} is not among SOURCES");
            found += 1;
        }
    }
    assert_eq!(found, SOURCES.len());
}
