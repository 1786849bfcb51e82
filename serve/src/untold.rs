//! Clients that have failed, until who wants to know has been told: until then they are noted, also
//! if they have gone meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::{Client, ClientId};

#[derive(Default)]
pub(crate) struct Untold(Mutex<HashMap<ClientId, Arc<Client>>>);

impl Untold {
    pub(crate) fn put(&self, client: &Arc<Client>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.insert(client.id, Arc::clone(client));
    }

    pub(crate) fn take(&self, client: ClientId) -> Option<Arc<Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&client)
    }
}
