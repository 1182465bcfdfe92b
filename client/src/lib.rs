//! Service traits of OM, SCM and datanode, in process or over HTTP; key readers and writers.
