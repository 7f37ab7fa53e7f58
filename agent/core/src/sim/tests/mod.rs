mod basics;
mod devices;
mod forged;
mod limits;
mod paths;
mod restarts;
mod revisions;
mod services;
