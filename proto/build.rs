//! Generates the messages and services from `isthmus/v1`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["isthmus/v1/mesh.proto", "isthmus/v1/control.proto", "isthmus/v1/local.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
