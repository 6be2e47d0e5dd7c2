// What a run ran on: processor, caches, memory, clocks, kernel, compiler, libraries, revision.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/core/backend.hpp"
#include "measure/results.hpp"

namespace attnbench {

/// Reads everything; `threads` as configured (0: all), `device`: the backend of a device besides the CPU,
/// when one takes part. Keys that the system does not tell are left out.
Environment collect_environment(int threads, Backend* device = nullptr);

/// The backend of a device's name; null with the reason for what cannot be used here.
Backend* find_backend(const std::string& device, std::string& why);
/// The first device besides the CPU that a suite names and this machine has; null: none.
Backend* device_of(const Suite& suite);

/// Hash of what does not change between two runs on the same hardware: processor, cores, cores this process
/// may use, caches, architecture, memory size in GiB. No clock reading, load, kernel, host name or software
/// version.
std::string machine_id(const std::map<std::string, Value>& values);

/// Largest data cache of `level`, bytes, summed over nothing: one instance. 0 when unknown.
int64_t cache_bytes(int level);
/// Cores this process may use.
int allowed_cpus();

/// The number after "key:" in a /proc file that counts in KiB; 0 when it is not there.
int64_t proc_kib(const std::string& path, const std::string& key);

/// Peak resident set of the process, bytes; reset_rss_peak() starts a new peak where the system permits it.
int64_t rss_peak();
bool reset_rss_peak();

}  // namespace attnbench
