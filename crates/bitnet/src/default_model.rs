//! The model of those who name none.

use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::model::BitNetModel;

static DEFAULT: Mutex<Option<BitNetModel>> = Mutex::new(None);

/// Makes a model the one that [`RequestScheduler`](crate::RequestScheduler) takes if it is given none.
///
/// Without this it is the one that the environment variable `BITNET_MODEL` names, a path as for
/// [`BitNetModel::from_pretrained`], and without that the demo model, if it is built in. That is loaded when it is first
/// needed, and stays.
pub fn set_default_model(model: &BitNetModel) {
    *DEFAULT.lock().unwrap_or_else(PoisonError::into_inner) = Some(model.clone());
}

/// The default model, loaded on a thread of its own if it is not there yet.
pub(crate) async fn default_model() -> Result<BitNetModel, Error> {
    if let Ok(Some(model)) = DEFAULT.try_lock().as_deref() {
        return Ok(model.clone());
    }
    let (sender, receiver) = async_channel::bounded(1);
    let load = move || drop(sender.send_blocking(load())); // nobody may wait any more
    std::thread::Builder::new()
        .name("bitnet-load".into())
        .spawn(load)
        .map_err(|source| Error::Threads { threads: 1, source })?;
    receiver.recv().await.map_err(|_| Error::LoadingPanicked)?
}

/// Whoever comes while another one loads waits for that.
fn load() -> Result<BitNetModel, Error> {
    let mut default = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(model) = &*default {
        return Ok(model.clone());
    }
    let builder = match std::env::var_os("BITNET_MODEL").filter(|name| !name.is_empty()) {
        Some(path) => BitNetModel::from_pretrained(std::path::PathBuf::from(path)),
        #[cfg(feature = "demo-model")]
        None => BitNetModel::demo(),
        #[cfg(not(feature = "demo-model"))]
        None => return Err(Error::NoModel),
    };
    let model = builder.load()?;
    *default = Some(model.clone());
    Ok(model)
}
