#!/usr/bin/env bash
# Runs every `vitesse` command that README.md and docs/ print, in their order, on small data that it draws: a command that the
# program refuses, or that stands on a file nobody made, fails.
#
#   tools/docs.sh [PROGRAM]          # PROGRAM: target/release/vitesse
#
# Long work is made short: one epoch, few pictures, few rounds. Recipes that stand on data sets of their own are looked at
# with --dry-run where the data are there, and left out, by name, where they are not.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "${1:-$root/target/release/vitesse}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
ln -s "$root/recipes" recipes
quiet() { "$@" >log 2>&1 || { cat log; return 1; }; }

# What the pages take for granted: a pretrained model, its weights alone, a CLIP, pictures in class folders, a recipe, a tensor,
# the features of texts.
quiet "$program" train --preset small --model deit_nano_patch8_32 --data shapes:silhouette --limit 64 --epochs 1 -o made
mv made/final deit_tiny
cp deit_tiny/model.safetensors sliced.safetensors
quiet "$program" train --preset small --model vit_nano_patch8_clip_quickgelu_32 --data shapes:silhouette --limit 64 --epochs 1 -o made-clip
mv made-clip/final clip-vit-base-patch32
# What a CLIP gives are features: its outputs have no names.
sed -i '/"label_names": \[/,/\]/d' clip-vit-base-patch32/config.json
for part in train test; do
    quiet "$program" data draw shapes:silhouette --split $part --count 80 -o photos/$part
    rm photos/$part/labels.csv
done
for copy in flowers sketches night; do cp -r photos $copy; done
cp "$(find photos -name '*.png' | sort | head -n 1)" photo.jpg
cat >my.toml <<'TOML'
preset = "small"
[model]
name = "deit_nano_patch8_32"
[data]
path = "shapes"
TOML
# A tensor NAME of SHAPE, so many BYTES, each of them the CHARACTER.
tensor() {
    local header="{\"$1\":{\"dtype\":\"F32\",\"shape\":$2,\"data_offsets\":[0,$3]}}"
    printf "\\x$(printf %x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
    head -c "$3" /dev/zero | tr '\0' "$4"
}
tensor pixel_values '[1,3,32,32]' 12288 '\0' >x.safetensors
tensor text_features '[3,8]' 96 '?' >classes.safetensors

# The commands in fenced blocks of sh: continued lines joined, comments off.
commands() {
    awk '/^```/ { inside = ($0 == "```sh") && !inside; next } inside' "$1" |
        sed -e ':join' -e '/\\$/ { N; s/\\\n */ /; b join' -e '}' |
        sed -nE -e 's/ +#.*$//' -e 's/^(\$ )?(vitesse .*)$/\2/p'
}

# What makes a command short, by its verb.
short() {
    case "$1" in
        *" --resume "*) ;;
        "vitesse train "* | "vitesse distill "* | "vitesse adapt "*)
            case "$1" in *" --epochs "*) ;; *) printf ' --epochs 1' ;; esac
            case "$1" in *" --limit "* | *" --shots "*) ;; *) printf ' --limit 48' ;; esac
            case "$1" in *" --compare "* | *" --search "*) printf ' --rounds 1' ;; esac ;;
        "vitesse eval "* | "vitesse analyze tokens "*)
            case "$1" in *" --limit "*) ;; *) printf ' --limit 32' ;; esac ;;
        "vitesse bench "*) printf ' --seconds 0.02 --min-runs 2' ;;
        "vitesse compare "*) printf ' --rounds 1 --seconds 0.01' ;;
    esac
}

ran=0 looked=0 left=0
for page in "$root"/README.md "$root"/docs/*.md "$root"/docs/methods/*.md "$root"/docs/results/*.md; do
    # Each page begins anew.
    rm -rf runs merged half photos-model flowers-model compared.html bench.csv y.safetensors maps.safetensors
    while IFS= read -r command; do
        typed=$command
        command=$(sed -E 's/\bDIR\b/deit_tiny/g; s/\bFOLDER\b/photos/g' <<<"$command")
        case "$command" in
            *…* | *vtab* | *DEIT_TINY* | *FASHION_MNIST* | *runs/distillation*)
                left=$((left + 1)) && echo "left out: $typed (data of its own)" && continue ;;
            *" recipes/"*)
                file=$(grep -oE 'recipes/[a-z0-9_/-]+\.toml' <<<"$command")
                data=$(sed -nE 's/^path = "(.*)"$/\1/p' "$file" | head -n 1)
                # Paths in recipes are relative to the project.
                if [[ $data == ../* && ! -e $root/$data || $command == *" --compare "* || $command == *" --sweep "* ]]; then
                    left=$((left + 1)) && echo "left out: $typed (data of its own, or hours)" && continue
                fi
                (cd "$root" && ${command/#vitesse/"$program"} --dry-run) >log 2>&1 || { echo "failed: $typed"; exit 1; }
                looked=$((looked + 1)) && continue ;;
        esac
        # Words of the pages hold no quotes and no spaces.
        if ! quiet ${command/#vitesse/"$program"} $(short "$command"); then
            echo "failed: $typed (${page#"$root"/})"
            exit 1
        fi
        ran=$((ran + 1))
    done < <(commands "$page")
done
echo "docs: $ran commands ran, $looked were looked at, $left left out"
((ran > 30))
