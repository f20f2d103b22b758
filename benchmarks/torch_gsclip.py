"""GS-CLIP in PyTorch, from docs/method.md: what `benchmarks/step.py` measures against. The parameters are ours, as tensors.

Attention is `scaled_dot_product_attention`, kernels lie as `torch.nn.functional.linear` wants them; the paper's variant alone,
without dropout. Axes as in docs/architecture.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Tree = dict[str, Any]
EPS = 1e-5


def tensors(tree: Any) -> Any:
    """The same tree with float32 tensors."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.from_numpy(np.array(tree))


def leaves(tree: Any) -> list[torch.Tensor]:
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def norm(p: Tree, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], EPS)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1, eps=1e-12)


class Tower:
    """Blocks of a tower: kernels of every layer, laid out once."""

    def __init__(self, blocks: Tree, heads: int):
        a, m = blocks["attn"], blocks["mlp"]
        self.depth, self.width, self.heads = a["qkv_kernel"].shape[0], a["qkv_kernel"].shape[1], heads
        n, w = self.depth, self.width
        self.qkv = a["qkv_kernel"].reshape(n, w, 3 * w).transpose(1, 2).contiguous(), a["qkv_bias"].reshape(n, 3 * w)
        self.out = a["out_kernel"].reshape(n, w, w).transpose(1, 2).contiguous(), a["out_bias"]
        self.fc = m["fc_kernel"].transpose(1, 2).contiguous(), m["fc_bias"]
        self.proj = m["proj_kernel"].transpose(1, 2).contiguous(), m["proj_bias"]
        self.norms = [[{k: v[i] for k, v in blocks[name].items()} for name in ("ln_1", "ln_2")] for i in range(n)]

    def mix(self, i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return F.linear(y.transpose(1, 2).flatten(2), self.out[0][i], self.out[1][i])

    def run(self, x, *, vv_start=None, lora=None, scale=2.0, deep=None, causal=False):
        """x [N,T,W] -> (after the last block, V-V path after it)."""
        second = None
        for i in range(self.depth):
            if deep is not None and 1 <= i <= len(deep):
                learned = deep[i - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], learned, x[:, 1 + learned.shape[1] :]], 1)
            first, after = self.norms[i]
            qkv = F.linear(norm(first, x), self.qkv[0][i], self.qkv[1][i])
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = x + self.mix(i, q, k, v, causal)
            h = norm(after, y)
            z = F.linear(h, self.fc[0][i], self.fc[1][i])
            if lora is not None:
                z = z + scale * (h @ lora["fc"]["a"][i]) @ lora["fc"]["b"][i]
            z = z * torch.sigmoid(1.702 * z)
            out = F.linear(z, self.proj[0][i], self.proj[1][i])
            if lora is not None:
                out = out + scale * (z @ lora["proj"]["a"][i]) @ lora["proj"]["b"][i]
            y = y + out
            if vv_start is not None:
                second = second + self.mix(i, v, v, v) if i >= vv_start else y
            x = y
        return x, second


class TorchGsClip:
    """Both stages' losses and the prediction.

    Args:
      params, stats: ours, as arrays.
      method: ours, whose settings are read.
    """

    def __init__(self, params: Tree, stats: Tree, method: Any):
        self.p, self.stats = tensors(params), tensors(stats)
        self.cfg, self.clip, self.net = method.cfg, method.clip, method.net
        self.gddm, self.smoothing = method.gddm, method.smoothing
        self.vision = Tower(self.p["clip"]["visual"]["blocks"], self.clip.vision_heads)
        self.text_tower = Tower(self.p["clip"]["text"]["blocks"], self.clip.text_heads)
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (self.clip.mean, self.clip.std))

    # ---- images

    def embed(self, grey: torch.Tensor) -> torch.Tensor:
        """uint8 [B,V,H,W] -> tokens [B*V,1+P,W]."""
        v = self.p["clip"]["visual"]
        x = (grey.flatten(0, 1)[:, None].float() / 255 - self.mean) / self.std
        x = F.conv2d(x, v["patch_embed"].permute(3, 2, 0, 1), stride=self.clip.patch).flatten(2).transpose(1, 2)
        first = v["class_embedding"].expand(len(x), 1, -1)
        return norm(v["ln_pre"], torch.cat([first, x], 1) + v["pos_embedding"])

    def project(self, x: torch.Tensor) -> torch.Tensor:
        v = self.p["clip"]["visual"]
        return norm(v["ln_post"], x) @ v["proj"]

    def render_tokens(self, batch: Tree) -> torch.Tensor:
        plain, second = self.vision.run(self.embed(batch["render"]), vv_start=self.clip.vision_layers - self.clip.vv_blocks)
        tokens = torch.cat([self.project(plain[:, :1]), self.project(second[:, 1:])], 1)
        return unit(tokens).unflatten(0, batch["render"].shape[:2])

    def depth_tokens(self, batch: Tree) -> torch.Tensor:
        m = self.cfg.model
        x, _ = self.vision.run(self.embed(batch["depth"]), lora=self.p["lora"], scale=m.lora_alpha / m.lora_rank)
        return unit(self.project(x)).unflatten(0, batch["depth"].shape[:2])

    def fused(self, render: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        s = self.p["srm"]
        affinity = (render @ s["render"]["kernel"] + s["render"]["bias"]) @ (depth @ s["depth"]["kernel"] + s["depth"]["bias"]).mT
        both = torch.cat([affinity.softmax(-1) @ depth, affinity.softmax(-2).mT @ render], -1)
        return unit(both @ s["out"]["kernel"] + s["out"]["bias"])

    # ---- text

    def block(self, name: str, x: torch.Tensor, train: bool) -> torch.Tensor:
        p, s = self.p["pointnet2"][name], self.stats["pointnet2"][name]
        for number in sorted(p, key=int):
            x = x @ p[number]["kernel"] + p[number]["bias"]
            mean, var = s[number]["mean"], s[number]["var"]
            if train:
                axes = tuple(range(x.ndim - 1))
                var, mean = torch.var_mean(x, axes, correction=0)
            x = torch.relu((x - mean) * (p[number]["bn"]["scale"] * torch.rsqrt(var + EPS)) + p[number]["bn"]["bias"])
        return x

    def pointnet2(self, cloud: torch.Tensor, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        net, rows = self.net, torch.arange(len(cloud))[:, None]
        xyz, features = [cloud], [cloud.repeat(1, 1, net.input_copies)]
        for level in range(net.levels):
            points, count = xyz[-1], net.centroids[level]
            near, last, taken = torch.full(points.shape[:2], math.inf), torch.zeros(len(cloud), dtype=torch.long), []
            for _ in range(count):
                taken.append(last)
                near = torch.minimum(near, ((points - points[rows[:, 0], last][:, None]) ** 2).sum(-1))
                last = near.argmax(-1)
            centres = points[rows, torch.stack(taken, 1)]
            distance = sum((centres[:, :, None, i] - points[:, None, :, i]) ** 2 for i in range(3))
            index = torch.arange(points.shape[1]).expand_as(distance)
            index = index.masked_fill(distance > net.radii[level] ** 2, points.shape[1])
            index = index.topk(min(net.neighbours, points.shape[1]), largest=False).values
            index = torch.where(index == points.shape[1], index[..., :1], index) % points.shape[1]
            at = rows[..., None]
            grouped = torch.cat([points[at, index] - centres[:, :, None], features[-1][at, index]], -1)
            xyz.append(centres)
            features.append(self.block(f"sa{level + 1}", grouped, train).amax(2))
        shape, x = features[-1].amax(1), features[-1]
        for level in range(net.levels, 0, -1):
            distance = sum((xyz[level - 1][:, :, None, i] - xyz[level][:, None, :, i]) ** 2 for i in range(3))
            near, index = distance.topk(min(3, distance.shape[-1]), largest=False)
            weight = 1 / (near + 1e-8)
            x = ((weight / weight.sum(-1, keepdim=True))[..., None] * x[rows[..., None], index]).sum(2)
            x = self.block(f"fp{level}", torch.cat([features[level - 1], x], -1) if level > 1 else x, train)
        return self.block("head", x, train), shape

    def defect_tokens(self, points: torch.Tensor) -> torch.Tensor:
        p, cfg = self.p["gddm"], self.gddm
        scores = 1 - (unit(points) @ unit(p["prototypes"]).T).amax(-1)
        top = scores.detach().topk(cfg.top_k).indices
        picked = points.gather(1, top[..., None].expand(-1, -1, points.shape[-1])) * scores.gather(1, top)[..., None]
        x = picked @ p["proj"]["kernel"] + p["proj"]["bias"]
        a, width = p["attn"], x.shape[-1]
        qkv = (x @ a["qkv_kernel"].reshape(width, -1) + a["qkv_bias"].reshape(-1)).unflatten(-1, (3, cfg.heads, -1))
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = norm(p["norm"], x + y @ a["out_kernel"].reshape(width, width) + a["out_bias"])
        return (x + F.gelu(x @ p["ffn"]["kernel"] + p["ffn"]["bias"]))[:, : cfg.defect_tokens]

    def text(self, batch: Tree, train: bool) -> torch.Tensor:
        """[B,2,E], normalised."""
        points, shape = self.pointnet2(batch["cloud"], train)
        p, t = self.p["prompts"], self.p["clip"]["text"]
        shape = norm(p["shape"]["ln"], F.gelu(shape @ p["shape"]["kernel"] + p["shape"]["bias"]))[:, None]
        ids = {name: getattr(self.clip, name) for name in ("sos", "dot", "eos", "pad")}
        special = {name: t["token_embedding"][number].expand(len(shape), 1, -1) for name, number in ids.items()}
        whole = lambda x: x.expand(len(shape), -1, -1)  # noqa: E731
        defects = self.defect_tokens(points)
        end = [special["dot"], special["eos"]]
        padding = special["pad"].expand(-1, defects.shape[1], -1)
        normal = torch.cat([special["sos"], whole(p["ctx_normal"]), shape, *end, padding], 1)
        abnormal = torch.cat([special["sos"], whole(p["ctx_abnormal"]), shape, defects, *end], 1)
        length = abnormal.shape[1]
        x = torch.stack([normal, abnormal], 1).flatten(0, 1) + t["pos_embedding"][:length]
        x, _ = self.text_tower.run(x, deep=p["deep"], causal=True)
        ends = torch.tensor([length - 1 - defects.shape[1], length - 1])
        x = x.unflatten(0, (-1, 2))[:, torch.arange(2), ends]
        return unit(norm(t["ln_final"], x) @ t["proj"])

    # ---- losses and scores

    def lift(self, cells: torch.Tensor, batch: Tree) -> torch.Tensor:
        """cells [B,V,C,g,g] -> [B,M,C]."""
        size, valid = batch["render"].shape[-1], batch["valid"]
        grid = ((batch["pixel"].float() + 0.5) * (2 / size) - 1).flatten(0, 1)[:, :, None]
        values = F.grid_sample(cells.flatten(0, 1), grid, align_corners=False, padding_mode="border")[..., 0]
        values = values.unflatten(0, cells.shape[:2])
        weight = (batch["visible"] & valid[:, None]).float()[:, :, None]
        return ((values * weight).sum(1) / weight.sum(1).clamp(min=1)).mT

    def compare(self, tokens: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """View logits [B,V,2], cells [B,V,2,g,g]."""
        logits = tokens @ text[:, None].mT / self.cfg.model.tau
        side = math.isqrt(tokens.shape[2] - 1)
        return logits[:, :, 0], logits[:, :, 1:].softmax(-1).mT.unflatten(-1, (side, side))

    def supervised(self, logits: torch.Tensor, cells: torch.Tensor, batch: Tree) -> torch.Tensor:
        size = batch["view_mask"].shape[-1]
        maps = F.interpolate(cells.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
        mask = batch["view_mask"].flatten(0, 1).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch["view_label"].flatten())
        loss = loss + F.cross_entropy(logits.mean(1), batch["label"])
        true = torch.where(mask > 0.5, maps[:, 1], maps[:, 0])
        p = (1 - EPS) * true + EPS * (1 - true) + EPS
        loss = loss - ((1 - p).clamp(min=0) ** 2 * p.log()).mean() + dice(maps[:, 1], mask) + dice(maps[:, 0], 1 - mask)
        points, valid = self.lift(cells, batch), batch["valid"].float()
        truth = batch["point_mask"].float()
        return loss + dice(points[..., 1] * valid, truth * valid) + dice(points[..., 0] * valid, (1 - truth) * valid)

    def stage1_loss(self, batch: Tree) -> torch.Tensor:
        """As published: the views are encoded in every step."""
        with torch.no_grad():
            tokens = self.render_tokens(batch)
        return self.supervised(*self.compare(tokens, self.text(batch, train=True)), batch)

    def stage2_loss(self, batch: Tree, render: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """At its best: what is frozen is given."""
        tokens = self.fused(render, self.depth_tokens(batch))
        first = tokens[:, :, 0]
        alike = F.cosine_similarity(first, first.mean(1, keepdim=True).expand_as(first), dim=-1).mean()
        return self.supervised(*self.compare(tokens, text), batch) + self.cfg.model.consistency * (1 - alike)

    @torch.no_grad()
    def predict(self, batch: Tree) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Objects [B], points [B,M], views [B,V,H,W]."""
        text = self.text(batch, train=False)
        logits, cells = self.compare(self.fused(self.render_tokens(batch), self.depth_tokens(batch)), text)
        points = self.smooth(self.lift(cells, batch)[..., 1], batch)
        size = batch["render"].shape[-1]
        maps = F.interpolate(cells.flatten(0, 1)[:, 1:], (size, size), mode="bilinear", align_corners=False)
        whole = 0.5 * points.amax(-1) + 0.5 * logits.softmax(-1)[..., 1].mean(-1)
        return whole, points, maps.unflatten(0, cells.shape[:2])[:, :, 0]

    def smooth(self, points: torch.Tensor, batch: Tree) -> torch.Tensor:
        """Over neighbours in space: unorganised scans, all points valid."""
        rows, near, xyz = torch.arange(len(points))[:, None, None], batch["neighbours"].long(), batch["xyz"]
        squared = ((xyz[rows, near] - xyz[:, :, None]) ** 2).sum(-1)
        sigma = self.smoothing.width * squared.amax(-1).sqrt().mean(-1)
        weight = (-0.5 * squared / sigma.square().clamp(min=1e-36)[:, None, None]).exp()
        weight = weight / weight.sum(-1, keepdim=True)
        for _ in range(self.smoothing.rounds):
            points = (points[rows, near] * weight).sum(-1)
        return points


def dice(probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    probs, mask = probs.flatten(1), mask.flatten(1)
    return (1 - (2 * (probs * mask).sum(-1) + 1) / (probs.sum(-1) + mask.sum(-1) + 1)).mean()
