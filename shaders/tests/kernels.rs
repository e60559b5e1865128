//! Every variant of every kernel: composed, parsed and validated as wgpu would, without a GPU; and what the host binds and
//! passes compared with what the shader declares.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};
use tandem_shaders::{Cache, Decode, FORMATS, HeadShape, Kernel, Operands, Pairing, SOURCES, params};

/// What wgpu asks naga to check for a device with the features that the backend asks for.
fn capabilities(subgroups: bool) -> Capabilities {
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    capabilities
}

fn shapes() -> Vec<HeadShape> {
    let sizes = [(8, 1), (10, 3), (64, 4), (80, 9), (128, 8), (256, 1), (1024, 2)];
    sizes.map(|(head_dim, group)| HeadShape { head_dim, group }).to_vec()
}

fn operands() -> Vec<Operands> {
    let both = |f: &tandem_shaders::Format| {
        [false, true]
            .into_iter()
            .filter(|int8| !int8 || f.decode == Decode::Quants)
            .map(|int8| Operands { ty: f.ty, int8 })
            .collect::<Vec<_>>()
    };
    FORMATS.iter().flat_map(both).collect()
}

/// All variants.
fn variants() -> Vec<Kernel> {
    let bools = [false, true];
    let mut all = vec![Kernel::Quantize];
    for quantize in bools {
        all.extend(bools.map(|in_place| Kernel::Norm { in_place, quantize }));
        all.extend(bools.map(|gelu| Kernel::Glu { gelu, quantize }));
    }
    for shape in shapes() {
        all.push(Kernel::Merge { shape });
        for cache in Cache::ALL {
            let rows = (0..5).map(|log| 1 << log).filter(|rows| *rows <= shape.max_rows());
            all.extend(rows.flat_map(|rows| bools.map(|shares| Kernel::Attend { shape, cache, rows, shares })));
        }
        for norm in bools {
            for rope in [None, Some(Pairing::Normal), Some(Pairing::NeoX)] {
                let stores = [None].into_iter().chain(Cache::ALL.map(Some));
                all.extend(stores.map(|store| Kernel::Heads { shape, norm, rope, store }));
            }
        }
    }
    for operands in operands() {
        all.extend([16, 64].map(|tokens| Kernel::MatMat { operands, tokens }));
        for subgroups in bools {
            for threads in [8, 32, 64, 128] {
                all.extend([1, 4].map(|cols| Kernel::MatVec { operands, threads, cols, subgroups }));
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
    let subgroups = matches!(kernel, Kernel::MatVec { subgroups: true, .. });
    let info = Validator::new(ValidationFlags::all(), capabilities(subgroups))
        .validate(&module)
        .unwrap_or_else(|e| panic!("{kernel:?}:\n{}", e.emit_to_string(&text)));
    (module, info)
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
        Kernel::Quantize => (size_of::<QuantizeParams>(), QuantizeParams::FIELDS),
        Kernel::Glu { .. } => (size_of::<GluParams>(), GluParams::FIELDS),
        Kernel::Heads { .. } => (size_of::<HeadsParams>(), HeadsParams::FIELDS),
        Kernel::Attend { .. } => (size_of::<AttendParams>(), AttendParams::FIELDS),
        Kernel::Merge { .. } => (size_of::<MergeParams>(), MergeParams::FIELDS),
        Kernel::MatVec { .. } | Kernel::MatMat { .. } => (size_of::<ProductParams>(), ProductParams::FIELDS),
    }
}

#[test]
fn every_variant_is_valid_and_is_what_the_host_takes_it_for() {
    let all = variants();
    for kernel in &all {
        let (module, info) = check(kernel);
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
