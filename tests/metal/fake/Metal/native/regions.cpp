// Memory of buffers that both sides see: each region is mapped twice, for the host and for the GPU.
//
// The host's mapping can be closed while the GPU may write. A host that touches it then is not stopped: the access is
// noted, the mapping opened, and the access repeated; so Python can say which buffer was touched too early. The GPU's
// mapping ends at a page that nobody may touch: a kernel that reads on dies, with a sentence.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>

namespace {

constexpr int MOST = 1 << 14;
constexpr char BEYOND[] = "the stand-in for Metal: a kernel left its buffer; run it under the checker to see where\n";

struct Region {
  char* host;
  char* gpu;
  size_t length;  // of both mappings, whole pages; one more page follows the GPU's
  std::atomic<bool> used, closed, touched;
};

Region regions[MOST];
std::mutex allocating;
struct sigaction before;

bool within(const char* at, const char* start, size_t length) { return at >= start && at < start + length; }

bool noted(const char* at) {
  for (Region& region : regions) {
    if (!region.used || !within(at, region.host, region.length)) continue;
    if (region.closed) region.touched = true;
    return mprotect(region.host, region.length, PROT_READ | PROT_WRITE) == 0;
  }
  return false;
}

void explain(const char* at) {
  for (const Region& region : regions)
    if (region.used && within(at, region.gpu + region.length, getpagesize()))
      (void)!write(STDERR_FILENO, BEYOND, sizeof BEYOND - 1);
}

// Returning repeats the access: with the handler that was there before, unless the mapping was ours and is now open.
void segment_fault(int, siginfo_t* info, void*) {
  const char* at = static_cast<const char*>(info->si_addr);
  if (noted(at)) return;
  explain(at);
  sigaction(SIGSEGV, &before, nullptr);
}

void install_once() {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action = {};
    action.sa_sigaction = segment_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
  });
}

bool map(Region& region, size_t length) {
  const int file = memfd_create("buffer", 0);
  if (file < 0) return false;
  const size_t page = getpagesize();
  void* const gpu = mmap(nullptr, length + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  bool good = gpu != MAP_FAILED && ftruncate(file, length) == 0;
  good = good && mmap(gpu, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
  void* const host = good ? mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  region.gpu = static_cast<char*>(gpu);
  region.host = static_cast<char*>(host);
  region.length = length;
  return host != MAP_FAILED;
}

}  // namespace

extern "C" {

// A new region of whole pages, zeroed; -1 when there is none to be had.
int region_new(size_t length) {
  install_once();
  const std::lock_guard lock(allocating);
  for (int i = 0; i < MOST; ++i) {
    Region& region = regions[i];
    if (region.used) continue;
    if (!map(region, length)) return -1;
    region.closed = region.touched = false;
    region.used = true;
    return i;
  }
  return -1;
}

void region_free(int i) {
  Region& region = regions[i];
  region.used = false;
  munmap(region.host, region.length);
  munmap(region.gpu, region.length + getpagesize());
}

void* region_host(int i) { return regions[i].host; }
void* region_gpu(int i) { return regions[i].gpu; }

void region_close(int i) {
  regions[i].closed = true;
  mprotect(regions[i].host, regions[i].length, PROT_NONE);
}

void region_open(int i) {
  mprotect(regions[i].host, regions[i].length, PROT_READ | PROT_WRITE);
  regions[i].closed = false;
}

// Whether the host touched the region while it was closed; asking forgets it.
int region_touched(int i) { return regions[i].touched.exchange(false); }
}
