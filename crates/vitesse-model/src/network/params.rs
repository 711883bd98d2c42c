//! Parameters by tensor name: from [`Tensors`] into Burn, and back.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use crate::spec::{ModelSpec, Role};
use crate::tensors::{self, Tensors};
use crate::{Error, Result};

/// The id of the parameter that holds the tensor `name`: the first eight bytes of the name's SHA-256.
pub fn param_id(name: &str) -> ParamId {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(name.as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    ParamId::from(u64::from_le_bytes(bytes))
}

/// Hands out named tensors as Burn parameters. The tensors have been checked against the spec before.
#[derive(Debug)]
pub struct Parameters<'a> {
    tensors: &'a Tensors,
    device: &'a Device,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(tensors: &'a Tensors, device: &'a Device) -> Self {
        Parameters { tensors, device }
    }

    /// A trained tensor of rank `D`, in `f32`; it asks for its gradient on an autodiff device.
    pub fn parameter<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>> {
        let trained = self.device.is_autodiff();
        Ok(Param::initialized(
            param_id(name),
            self.tensor(name)?.set_require_grad(trained),
        ))
    }

    /// As [`Parameters::parameter`], where it is there.
    pub fn optional<const D: usize>(&self, is_there: bool, name: &str) -> Result<Option<Param<Tensor<D>>>> {
        is_there.then(|| self.parameter(name)).transpose()
    }

    /// A tensor of rank `D` that gradients do not train, in `f32`.
    pub fn buffer<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>> {
        Ok(Param::initialized(param_id(name), self.tensor(name)?).set_require_grad(false))
    }

    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let tensor = self.tensors.get(name)?;
        let rank = tensor.shape().len();
        if rank != D {
            return Err(Error::invalid_spec(format!(
                "tensor `{name}` has rank {rank}; the network needs {D}"
            )));
        }
        let values = tensor.to_f32().into_owned();
        Ok(Tensor::from_data(
            TensorData::new(values, tensor.shape().to_vec()),
            self.device,
        ))
    }
}

/// Collects the parameters of a module by tensor name.
pub(super) fn export<M: Module>(module: &M, spec: &ModelSpec) -> Result<Tensors> {
    struct Collect(HashMap<ParamId, TensorData>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, param.val().to_data());
        }
    }
    let mut collect = Collect(HashMap::new());
    module.visit(&mut collect);
    let mut out = Tensors::new();
    for tensor in spec.tensors()? {
        let value = if tensor.role == Role::Counter {
            tensor.init(0)?
        } else {
            let data = collect.0.remove(&param_id(&tensor.name)).ok_or_else(|| {
                Error::invalid_spec(format!(
                    "the network holds no parameter for tensor `{}`",
                    tensor.name
                ))
            })?;
            let values = data
                .try_to_vec::<f32>()
                .map_err(|e| Error::invalid_spec(format!("{}: {e:?}", tensor.name)))?;
            tensors::Tensor::from_f32(&tensor.shape, values)?
        };
        out.insert(tensor.name, value);
    }
    Ok(out)
}
