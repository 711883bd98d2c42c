"""CLIP's image encoder as people have it, read by `vitesse run` (the engine and the network) and by the library that wrote
it: the CLIP cases of interop.py.

OpenAI's program is written down here once more, because its package is seldom installed: its layers, and so its names.
Whole CLIPs with their text encoders are written by transformers. Zero-shot scores are those of transformers too.
"""

import json
from collections import OrderedDict

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
        "max_position_embeddings": 16, "projection_dim": 24}
SMALL = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
         "patch_size": 8, "projection_dim": 24}
LARGE = {"projection_dim": 512}
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3, "num_classes": 10}


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, act):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=act(), c_proj=nn.Linear(4 * width, width)))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """OpenAI's `VisionTransformer`."""

    def __init__(self, size, patch, width, layers, outputs, act=QuickGELU):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) / width**0.5)
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) / width**0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*[Block(width, width // 64, act) for _ in range(layers)])
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, outputs) / width**0.5)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


class OpenAI(nn.Module):
    """What of OpenAI's `CLIP` stands in its state dict; texts are not computed."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.visual = Encoder(*args, **kwargs)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(Block(64, 1, QuickGELU))
        self.token_embedding = nn.Embedding(50, 64)
        self.positional_embedding = nn.Parameter(torch.randn(16, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 24))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, x):
        return self.visual(x)


def archive(model):
    """The state dict of one of OpenAI's archives, which are in half precision but for the norms."""
    numbers = {"input_resolution": 32, "context_length": 16, "vocab_size": 50}
    half = {name: tensor if "ln_" in name else tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict(half)
    return {**half, **{name: torch.tensor(number) for name, number in numbers.items()}}


class Features(nn.Module):
    """What transformers says about images: the projected features, or what the encoder alone pools."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        if isinstance(self.model, CLIPModel):
            found = self.model.get_image_features(x)
            return getattr(found, "pooler_output", found)
        found = self.model(x)
        return found.image_embeds if "image_embeds" in found else found.pooler_output


def cases(randomise, work):
    """Yields a name, flags for `vitesse run`, the model that says what should come out, and its input."""
    generator = torch.Generator().manual_seed(1)

    def x(size=32):
        return torch.randn(2, 3, size, size, generator=generator)

    small, real = (32, 8, 128, 3, 24), (224, 32, 768, 12, 512)
    for case, sizes in {"small": small, "B/32": real}.items():
        model = randomise(OpenAI(*sizes))
        torch.save(archive(model), work / f"openai-{case[0]}.pth")
        yield f"OpenAI's, {case}, half precision", [work / f"openai-{case[0]}.pth"], model, x(sizes[0])
    model = randomise(OpenAI(*real, act=nn.GELU))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, work / "openclip.pt")
    flags = [work / "openclip.pt", "--architecture", "vit_base_patch32_clip_224"]
    yield "OpenCLIP's training, B/32", flags, model, x(224)
    model = randomise(OpenAI(*small, act=nn.GELU))
    (work / "beside").mkdir()
    save_file(model.visual.state_dict(), work / "beside" / "open_clip_model.safetensors")
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {}}, "preprocess_cfg": {}}
    (work / "beside" / "open_clip_config.json").write_text(json.dumps(config))
    yield "OpenCLIP's with its config", [work / "beside"], model, x()

    for act in ("quick_gelu", "gelu"):
        sizes = {**SMALL, "hidden_act": act, "layer_norm_eps": 1e-5 if act == "gelu" else 1e-3}
        for kind in (CLIPModel, CLIPVisionModelWithProjection, CLIPVisionModel):
            config = CLIPVisionConfig(**sizes)
            if kind is CLIPModel:
                config = CLIPConfig(text_config=TEXT, vision_config=sizes, projection_dim=24)
            folder = work / f"{kind.__name__}-{act}"
            model = randomise(kind(config))
            model.save_pretrained(folder)
            yield f"transformers, {kind.__name__}, {act}", [folder], Features(model), x()
    model = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**LARGE)))
    model.save_pretrained(work / "b32")
    yield "transformers, B/32", [work / "b32"], Features(model), x(224)

    for name in ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224", "vit_base_patch16_clip_quickgelu_224"):
        sizes = SIZES if "patch16" in name else {}
        model = randomise(timm.create_model(name, **sizes))
        folder = work / name
        save_for_hf(model, folder, safe_serialization=True)
        yield f"timm, {name} {sizes or ''}", [folder], model, x(sizes.get("img_size", 224))


@torch.no_grad()
def compare(vitesse, randomise, report, work):
    """Runs every case by the engine and by the network, and compares zero-shot scores."""
    work = work / "clip"
    work.mkdir()
    images, answer = work / "images.safetensors", work / "answer.safetensors"
    for case, flags, model, x in cases(randomise, work):
        save_file({"pixel_values": x}, images)
        expected = model(x)
        scale = max(1.0, expected.abs().max().item())
        for by, engine in {"engine": [], "network": ["--engine", "burn"]}.items():
            vitesse("run", "--model", *flags, "--input", images, "--output", answer, "--force", *engine)
            found = load_file(answer)["logits"]
            report(f"clip: {case}, {by}", (found - expected).abs().max().item() / scale)
    report("clip: zero-shot", zero_shot(vitesse, randomise, work / "zero-shot"))


def zero_shot(vitesse, randomise, folder):
    """The largest difference of `predict --text-features` from what transformers makes of images and texts."""
    config = CLIPConfig(text_config=TEXT, vision_config=SMALL, projection_dim=24)
    model = randomise(CLIPModel(config))
    model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    labels = ["a cat", "a dog", "a cup"]
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(2))
    ids[:, -1] = config.text_config.eos_token_id = 49
    texts = model.get_text_features(ids)
    texts = getattr(texts, "pooler_output", texts)
    file = folder / "texts.safetensors"
    save_file({"text_features": texts, "logit_scale": model.logit_scale}, file, {"labels": json.dumps(labels)})
    picture = folder / "picture.png"
    # Of the size of the model: nothing is resized, so that only the scores are compared.
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(picture)
    pixels = CLIPImageProcessor.from_pretrained(folder)(Image.open(picture), return_tensors="pt")["pixel_values"]
    features = Features(model)(pixels)
    cosines = nn.functional.normalize(features, dim=-1) @ nn.functional.normalize(texts, dim=-1).T
    expected = (model.logit_scale.exp() * cosines).softmax(-1)[0]
    found = json.loads(vitesse(
        "predict", "--model", folder, "--text-features", file, "--topk", 3, "--json", picture).stdout)
    found = {row["name"]: row["score"] for row in found["predictions"][0]["classes"]}
    return max(abs(found[label] - score.item()) for label, score in zip(labels, expected))
