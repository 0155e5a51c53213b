"""Modules that have moved since earlier versions: importing or running one says where it is now."""

import sys

# package -> modules that are there now: the old name, or old:new where the name has changed (new+newer: two modules)
_NOW = {
    "vlp": "towers:",
    "metrics": "decisions:",
    "scores": "alone:",
    "protocols": "pooled_ap:",
    "pretrained": "card:",
    "engine": "devices files memory:devices names:messages schedules weights:files",
    "data": "data.common:table_format data.dataset:labelled_folder data.partial:hide_labels data.statistics:doctor "
    "data.writer:table_writer",
    "data.feeds": "embeddings features passes:order pictures shards:store",
    "data.mojiscenes": "data.backgrounds:stuff data.openmoji:openmoji data.portraits:captions "
    "backgrounds:stuff portraits:captions",
    "data.official": "data.coco:coco data.folder:own_folder data.nus_wide:nus_wide data.open_images:open_images "
    "data.open_images_rows:open_images data.voc:voc",
    "methods": "baselines: word_vectors zero_shot:plain_vlp",
    "methods.missing_labels": "partial:",
    "studies": "batch breakdown:by_object_size commit:records comparison:compare executors:batch fit:one_run "
    "grid localisation notebook:notebooks one_job:batch pretrain:pretrain_mini probe:levels+mini_vlp "
    "published:records resampling:bootstrap results:records",
    "apply": "bars:html calibration explain:region_maps explorer explorer_page:html gallery grad_cam "
    "label_cache:label_scorer label_scorer onnx_export:onnx own_data:fine_tune own_labels:vocabulary predict "
    "rescoring:explorer",
    "figures": "map_figures:maps method_figures:methods",
    "speed": "benchmark: budget:cost dry_run dry_stages:dry_run data.generated:generated isolated:own_process",
}


def table() -> dict[str, str]:
    """Old module -> new module, both in full."""
    found = {}
    for package, names in _NOW.items():
        for word in names.split():
            old, colon, new = word.partition(":")
            places = (new if colon else old).split("+")  # a module may have become two
            full = [".".join(filter(None, ["hrcf_lib", package, place])) for place in places]
            found[f"hrcf_lib.{old}"] = " and ".join(full)
    return found


class _Finder:
    """Asked for a module that no other finder knows; it finds nothing, and its error says where the module went."""

    table = table()

    def find_spec(self, name, path=None, target=None):
        if name in self.table:
            raise ModuleNotFoundError(f"{name} has moved: it is {self.table[name]} now")


def watch() -> None:
    """From now on, importing a module that has moved raises ``ModuleNotFoundError`` that names the new place."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
