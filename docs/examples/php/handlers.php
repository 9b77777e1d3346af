<?php

command('clean', function (string $html): array {
    $document = new DOMDocument();
    // The declaration tells DOMDocument the encoding; without it, it takes UTF-8 for Latin-1.
    @$document->loadHTML('<?xml encoding="utf-8"?>' . $html, LIBXML_HTML_NODEFDTD);
    $xpath = new DOMXPath($document);
    $removed = 0;
    foreach (iterator_to_array($xpath->query('//script | //style | //iframe | //comment()')) as $node) {
        $node->parentNode->removeChild($node);
        $removed++;
    }
    foreach (iterator_to_array($xpath->query('//@*[starts-with(name(), "on")]')) as $attribute) {
        $attribute->ownerElement->removeAttributeNode($attribute);
        $removed++;
    }
    foreach (iterator_to_array($xpath->query('//@href[starts-with(normalize-space(.), "javascript:")]')) as $link) {
        $link->ownerElement->removeAttributeNode($link);
        $removed++;
    }
    $html = '';
    foreach ($xpath->query('//body')->item(0)->childNodes as $node) {
        $html .= $document->saveHTML($node);
    }
    return ['html' => $html, 'removed' => $removed];
});
