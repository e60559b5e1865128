//! Devices that fail while running: an error each time, never a result.

use tandem_loader::GgmlType;
use tandem_models::{Reg, Step};

use super::super::GpuError;
use super::super::device::caught;
use super::bench::{Bench, Plan, has_device, options};
use crate::backend::{Backend, Batch, Hidden};
use crate::error::Error;
use crate::model::Precision;

const N_VOCAB: usize = 300;

/// A head whose logits are the rows of its matrix times the norm of X.
fn head() -> Bench {
    let mut plan = Plan::new(64, 32, (1, 1, 32));
    plan.hparams.n_vocab = N_VOCAB;
    let norm = plan.norm(64);
    let linear = plan.linear(GgmlType::F32, 64, N_VOCAB, false);
    let norm = Step::Norm { norm, input: Reg::X, output: Reg::H, add: false };
    plan.blocks.push(vec![norm, Step::Logits { linear, soft_cap: None }]);
    plan.is_head = true;
    plan.bench(options(Precision::Exact))
}

/// What is most likely, or what went wrong.
fn run(bench: &mut Bench, x: &[f32], enough: Option<usize>) -> Result<Hidden, GpuError> {
    let mut hidden = Hidden { x: x.to_vec(), enough, ..Hidden::default() };
    match bench.gpu.run(0..1, &Batch { tokens: &[0], start: 0, outputs: (0, 1) }, &mut hidden) {
        Ok(()) => Ok(hidden),
        Err(Error::Gpu(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Runs in every way that gives results; each must be this error.
fn stays(bench: &mut Bench, x: &[f32], error: &GpuError) {
    for enough in [Some(4), None, Some(257), Some(4)] {
        assert_eq!(run(bench, x, enough).err().as_ref(), Some(error));
    }
    assert!(bench.gpu.register(Reg::X, 1, 64, false).is_err());
}

#[test]
fn a_lost_device() {
    if !has_device() {
        return;
    }
    let mut bench = head();
    let x = bench.random.floats(64);
    run(&mut bench, &x, None).unwrap();
    bench.gpu.gpu.device.destroy();
    let error = run(&mut bench, &x, None).unwrap_err();
    assert!(matches!(error, GpuError::Lost { .. }), "{error}");
    stays(&mut bench, &x, &error);
}

/// Lost in the middle of anything: up to then all results are right, from then on there are none.
#[test]
fn a_device_lost_at_any_time() {
    if !has_device() {
        return;
    }
    for delay in [0, 1, 3, 7, 20] {
        let mut bench = head();
        let x = bench.random.floats(64);
        let want = run(&mut bench, &x, Some(4)).unwrap().best;
        let device = bench.gpu.gpu.device.clone();
        let loss = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(delay));
            device.destroy();
        });
        let error = loop {
            match run(&mut bench, &x, Some(4)) {
                Ok(hidden) => assert_eq!(hidden.best, want),
                Err(error) => break error,
            }
        };
        loss.join().unwrap();
        assert!(matches!(error, GpuError::Lost { .. }), "after {delay} ms: {error}");
        stays(&mut bench, &x, &error);
    }
}

/// The two ways in which wgpu says that there is no memory left: of an allocation, and by giving the device up. (To take all
/// of a software device's memory would be to take the machine's.)
#[test]
fn no_memory_while_running() {
    if !has_device() {
        return;
    }
    let none_left = wgpu::hal::DeviceError::OutOfMemory;
    let of_loss = GpuError::of_loss(none_left.to_string());
    let of_allocation = GpuError::from(wgpu::Error::OutOfMemory { source: Box::new(none_left) });
    for trouble in [of_loss, of_allocation] {
        let mut bench = head();
        let x = bench.random.floats(64);
        run(&mut bench, &x, None).unwrap();
        bench.gpu.gpu.trouble.note(trouble);
        let error = run(&mut bench, &x, Some(4)).unwrap_err();
        assert!(matches!(error, GpuError::OutOfMemory { .. }), "{error}");
        stays(&mut bench, &x, &error);
    }
}

/// An error that a driver reports beside any call.
#[test]
fn an_error_of_the_driver() {
    if !has_device() {
        return;
    }
    let mut bench = head();
    let x = bench.random.floats(64);
    let readback = bench.gpu.buffers.readback.clone();
    // Mapped memory cannot be written by the device.
    readback.map_async(wgpu::MapMode::Read, .., |_| ());
    let error = run(&mut bench, &x, Some(4)).unwrap_err();
    assert!(matches!(error, GpuError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("-ngl 0"), "{error}");
    stays(&mut bench, &x, &error);
}

#[test]
fn panics_are_caught() {
    assert_eq!(caught(|| 7), Some(7));
    assert_eq!(caught(|| -> u32 { panic!("as wgpu does where a device is lost while it is waited for") }), None);
}
