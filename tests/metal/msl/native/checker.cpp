#include "checker.h"

#include <tuple>

namespace msl {

Threadgroup& running_threadgroup();

namespace {

constexpr uintptr_t PAGE = 4096;

const char* noun(unsigned access) {
  return access & ATOMIC ? "atomic operation" : access & WRITE ? "write" : "read";
}

bool inside(const char* address, size_t size, const char* first, size_t length) {
  return address >= first && size <= length && static_cast<size_t>(address - first) <= length - size;
}

std::string bytes(size_t count) { return std::to_string(count) + (count == 1 ? " byte" : " bytes"); }

// Threadgroups run one after the other in the same memory, which they do not share.
void forget_others(Cell& cell, uint32_t group) {
  if (cell.write.group != group) cell.write = {};
  for (Crowd* crowd : {&cell.readers, &cell.atomic_readers, &cell.atomic_writers})
    if (crowd->last.group != group) *crowd = {};
}

}  // namespace

bool Touch::ordered_before(const Touch& later) const {
  if (group != later.group) return group == 0;
  if (epoch != later.epoch) return true;
  if (simdgroup() != later.simdgroup()) return false;
  return simd_epoch != later.simd_epoch || (thread == later.thread && !several);
}

void Crowd::add(const Touch& touch) {
  if (last.group != touch.group) {
    if (last.group != 0) elsewhere = last;
    last = touch;
    other = {};
    return;
  }
  if (last.epoch != touch.epoch) {
    last = touch;
    other = {};
    return;
  }
  if (last.simdgroup() != touch.simdgroup()) std::swap(last, other);
  const bool together = last.group == touch.group && last.simdgroup() == touch.simdgroup() &&
                        last.epoch == touch.epoch && last.simd_epoch == touch.simd_epoch;
  if (last.group != 0 && last.simdgroup() != touch.simdgroup()) other = last;
  const bool several = together && (last.several || last.thread != touch.thread);
  last = touch;
  last.several = several;
}

const Touch* Crowd::conflict(const Touch& touch) const {
  for (const Touch* earlier : {&last, &other, &elsewhere})
    if (!earlier->ordered_before(touch)) return earlier;
  return nullptr;
}

void Shadow::prepare(size_t offset, size_t size) {
  if (cells_.empty()) cells_.resize(PAGE / width_);
  if (offset % width_ || size % width_) refine();
}

void Shadow::refine() {
  std::vector<Cell> fine(PAGE);
  for (size_t i = 0; i < PAGE; ++i) fine[i] = cells_[i / width_];
  cells_ = std::move(fine);
  width_ = 1;
}

bool Checker::Before::operator()(const Site& a, const Site& b) const {
  const auto key = [](const Site& site) { return std::make_tuple(std::string(site.file), site.line, site.column); };
  return key(a) < key(b);
}

const Site* Checker::keep(const Site& site) { return &*sites_.insert(site).first; }

void Checker::device(const char* address, size_t size, unsigned access, const Site* site) {
  const Visit seen = visit(address, size, access, DEVICE, site);
  const int index = bound(address, size, 1u << DEVICE);
  if (index < 0) report_bounds(seen);
  const bool writable = written_somewhere(address);
  if ((access & WRITE) && !writable)
    running_threadgroup().give_up(CONST_WRITE, *site,
                                  "this writes to the buffer at index " + std::to_string(index) +
                                      ", which is a pointer to const");
  if ((access & WRITE) && bound(address, size, 1u << CONSTANT) >= 0)
    running_threadgroup().give_up(CONSTANT_MISUSE, *site,
                                  "this writes to memory that is bound as constant too, at index " +
                                      std::to_string(bound(address, size, 1u << CONSTANT)));
  if (writable) follow(seen);
}

void Checker::constant(const char* address, size_t size, unsigned access, const Site* site) {
  if (access & WRITE)
    running_threadgroup().give_up(CONSTANT_MISUSE, *site, "this writes through a pointer to constant memory");
  if (bound(address, size, 1u << CONSTANT) >= 0) return;
  for (unsigned i = 0; i < launch_.constant_count; ++i)
    if (inside(address, size, launch_.constants[i].address, launch_.constants[i].size)) return;
  report_bounds(visit(address, size, access, CONSTANT, site));
}

void Checker::threadgroup(const char* address, size_t size, unsigned access, const Site* site) {
  const Visit seen = visit(address, size, access, THREADGROUP, site);
  for (const Arena::Part& part : running_threadgroup().arena().parts) {
    if (!inside(address, size, part.address, part.size)) continue;
    if (access & READ) must_be_written(seen);
    return follow(seen);
  }
  report_bounds(seen);
}

Checker::Visit Checker::visit(const char* address, size_t size, unsigned access, Memory memory,
                              const Site* site) const {
  const Threadgroup& group = running_threadgroup();
  const Epochs &all = group.epochs(), &simd = group.simd_epochs();
  Touch touch;
  touch.site = site;
  touch.group = static_cast<uint32_t>(group.number() + 1);
  touch.thread = group.lane().thread_index_in_threadgroup;
  touch.epoch = memory == THREADGROUP ? all.threadgroup : all.device;
  touch.simd_epoch = memory == THREADGROUP ? simd.threadgroup : simd.device;
  return {address, size, access, memory, touch};
}

// Threadgroup memory has no content until this threadgroup has written it.
void Checker::must_be_written(const Visit& visit) {
  for (size_t i = 0; i < visit.size;) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(visit.address) + i;
    Shadow& page = shadow(at / PAGE);
    page.prepare(at % PAGE, visit.size - i);
    const Cell& cell = page.at(at % PAGE);
    if (cell.write.group != visit.touch.group && cell.atomic_writers.last.group != visit.touch.group)
      return running_threadgroup().faults().add(
          UNINITIALISED, *visit.touch.site,
          "thread " + std::to_string(visit.touch.thread) +
              " reads threadgroup memory that no thread has written yet");
    i += page.width();
  }
}

void Checker::follow(const Visit& visit) {
  for (size_t i = 0; i < visit.size;) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(visit.address) + i;
    Shadow& page = shadow(at / PAGE);
    page.prepare(at % PAGE, visit.size - i);
    if (!judge(visit, page.at(at % PAGE))) return;
    i += page.width();
  }
}

// Compares an access with those before it, and notes it; false once a race has been reported.
bool Checker::judge(const Visit& visit, Cell& cell) {
  const Touch& now = visit.touch;
  if (visit.memory == THREADGROUP) forget_others(cell, now.group);
  const Touch* earlier = cell.write.ordered_before(now) ? nullptr : &cell.write;
  const char* what = "writes";
  auto compare = [&](const Crowd& crowd, const char* did) {
    if (!earlier && (earlier = crowd.conflict(now))) what = did;
  };
  const bool atomic = visit.access & ATOMIC, writes = visit.access & WRITE;
  if (!atomic) compare(cell.atomic_writers, "writes atomically");
  if (!atomic && writes) compare(cell.atomic_readers, "reads atomically");
  if (writes) compare(cell.readers, "reads");
  if (earlier) report_race(visit, *earlier, what);
  note(visit, cell);
  return !earlier;
}

void Checker::note(const Visit& visit, Cell& cell) {
  const bool writes = visit.access & WRITE;
  if (visit.access & ATOMIC)
    (writes ? cell.atomic_writers : cell.atomic_readers).add(visit.touch);
  else if (writes)
    cell.write = visit.touch;
  else
    cell.readers.add(visit.touch);
}

void Checker::report_race(const Visit& visit, const Touch& earlier, const char* what) {
  const bool apart = earlier.group != visit.touch.group;
  const std::string mine = "thread " + std::to_string(visit.touch.thread), its = std::to_string(earlier.thread);
  const std::string groups =
      apart ? " (of threadgroup " + std::to_string(visit.touch.group - 1) + ")" : std::string();
  const std::string others = apart ? " of threadgroup " + std::to_string(earlier.group - 1) : std::string();
  running_threadgroup().faults().add(
      RACE, *visit.touch.site,
      "race in " + std::string(visit.memory == THREADGROUP ? "threadgroup" : "device") + " memory: this " +
          noun(visit.access) + " of " + mine + groups + " is not ordered with thread " + its + others + ", which " +
          what + " the same bytes at " + text(*earlier.site));
}

void Checker::report_bounds(const Visit& visit) {
  running_threadgroup().give_up(OUT_OF_BOUNDS, *visit.touch.site,
                                "out of bounds: this " + std::string(noun(visit.access)) + " of " +
                                    bytes(visit.size) + " by thread " + std::to_string(visit.touch.thread) +
                                    " of threadgroup " + std::to_string(visit.touch.group - 1) + nearest(visit));
}

// Which memory an access has missed, and by how much: the one whose end, or else beginning, is nearest.
std::string Checker::nearest(const Visit& visit) const {
  std::string found = " is in no memory that is bound";
  size_t least = SIZE_MAX;
  auto consider = [&](const char* first, size_t length, const std::string& name) {
    const bool before = visit.address < first;
    const size_t away = before ? static_cast<size_t>(first - visit.address)
                               : static_cast<size_t>(visit.address - first) + visit.size - length;
    if (away >= least) return;
    least = away;
    found = (before ? " begins " : " ends ") + bytes(away) + (before ? " before " : " past the end of ") + name +
            " of " + bytes(length);
  };
  if (visit.memory == THREADGROUP)
    for (const Arena::Part& part : running_threadgroup().arena().parts)
      consider(part.address, part.size, "threadgroup memory");
  if (visit.memory == CONSTANT)
    for (unsigned i = 0; i < launch_.constant_count; ++i)
      consider(launch_.constants[i].address, launch_.constants[i].size, "a constant of the program");
  if (visit.memory != THREADGROUP)
    for (unsigned i = 0; i < MAX_INDEX; ++i)
      if (launch_.bindings[i].address && launch_.bindings[i].memory == visit.memory)
        consider(launch_.bindings[i].address, launch_.bindings[i].length, "the buffer at index " + std::to_string(i));
  return found;
}

// The index of a binding that holds these bytes, of a memory whose bit is set; -1 if there is none.
int Checker::bound(const char* address, size_t size, unsigned memories) const {
  for (unsigned i = 0; i < MAX_INDEX; ++i) {
    const Binding& binding = launch_.bindings[i];
    if (!binding.address || !(memories >> binding.memory & 1)) continue;
    if (inside(address, size, binding.address, binding.length)) return static_cast<int>(i);
  }
  return -1;
}

bool Checker::written_somewhere(const char* address) const {
  for (const Binding& binding : launch_.bindings)
    if (binding.address && binding.writable && inside(address, 1, binding.address, binding.length)) return true;
  return false;
}

Shadow& Checker::shadow(uintptr_t page) {
  std::unique_ptr<Shadow>& found = pages_[page];
  if (!found) found = std::make_unique<Shadow>();
  return *found;
}

extern "C" void msl_check_device(const void* address, unsigned long size, unsigned access, const Site* site) {
  running_threadgroup().checker()->device(static_cast<const char*>(address), size, access, site);
}

extern "C" void msl_check_constant(const void* address, unsigned long size, unsigned access, const Site* site) {
  running_threadgroup().checker()->constant(static_cast<const char*>(address), size, access, site);
}

extern "C" void msl_check_threadgroup(const void* address, unsigned long size, unsigned access, const Site* site) {
  running_threadgroup().checker()->threadgroup(static_cast<const char*>(address), size, access, site);
}

extern "C" void msl_check_here(const void* address, unsigned long size, unsigned access, unsigned memory, Site site) {
  const Site* kept = running_threadgroup().checker()->keep(site);
  if (memory == DEVICE) return msl_check_device(address, size, access, kept);
  if (memory == CONSTANT) return msl_check_constant(address, size, access, kept);
  msl_check_threadgroup(address, size, access, kept);
}

}  // namespace msl
